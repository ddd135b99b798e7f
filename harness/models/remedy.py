"""The commands that make an artefact which a run did not find: with the run's own flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.appearance.visible_text import shell_command
from harness.contracts import ModelInfo
from harness.host.foreign_files import NotRegularError, read_json, real_path
from harness.models.artefacts import SHIPPED

__all__ = ["Remedy", "remedy"]


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to do about a missing artefact.

    Attributes:
        commands: for a shell, in order.
        effort: how long they take and what to know of them, a phrase for brackets.
    """

    commands: tuple[str, ...]
    effort: str


def remedy(
    kind: str, model: ModelInfo, name: str, folder: Path | None = None, *, tune: bool = True, overwrite: bool = False
) -> Remedy:
    """Return the commands in order, after which the same run finds what it looked for.

    A controller wants tuning first where the run would take an adapter and there is none. A trace of the same model
    that lies in its usual place is not made again. A shipped set is copied, never written to.

    Args:
        kind: what ``harness train`` shall make: ``adapter``, ``shortcut``, a cheap head or a controller.
        model: as the run asked for it; for shortcuts, with the exit head that they are fitted on.
        name: of the file, without its ending.
        folder: the one the run looks in, if it named the file by a path.
        tune: whether a controller may want tuning first; false where it is known to be of the weights the run has.
        overwrite: whether there is a controller of that name, of something else.
    """
    asked, plain = model.asked, Path(model.name).name
    given = ["--model", asked.model or model.name]
    head = "shared" if kind == "shortcut" else asked.exit_head
    exits = [] if head == "auto" else ["--exit-head", head]
    exits += [] if asked.exit_points == "paper" else ["--exit-points", asked.exit_points]
    commands, effort, place = _own_folder(asked.artefacts)
    found = [] if place is None else ["--artefacts", place]
    if place is None and Path(given[1]).name != plain:  # a folder given as . or the like
        place = f"artefacts/{plain}"
    out = [] if place is None else ["--out", place]
    lite = _harness("train", "lite", *given, *exits, *out)
    if kind == "adapter":
        return Remedy((*commands, lite), "; ".join([*effort, "hours"]))
    if kind == "shortlist":  # counted in the data themselves
        return Remedy((*commands, _harness("train", kind, *given, *out)), "; ".join([*effort, "a minute"]))
    traces, fits = _traces(model)
    if not fits:
        if tune and kind != "shortcut" and asked.weights == "auto" and model.weights == "pretrained":
            commands.append(lite)
            effort.append("hours to tune, without which the base weights serve")
        flags = [] if asked.weights == "auto" else ["--weights", asked.weights]
        flags += [] if asked.dtype == "float32" else ["--dtype", asked.dtype]
        flags += ["--seed", str(asked.seed)] if model.weights == "random" and asked.seed else []
        commands.append(_harness("trace", *given, *flags, *exits, *found, "--out", traces))
        effort.append("minutes to hours to trace")
    effort.append("minutes to train")
    if folder is not None and real_path(folder).is_relative_to(SHIPPED):
        effort.append(f"then give the name {name} without a folder")
    elif folder is not None:
        out = ["--out", str(folder)]
    named = [] if name == kind else ["--name", name]
    named += ["--overwrite"] if overwrite else []
    train = _harness("train", kind, *given, "--traces", traces, *found, *out, *named)
    return Remedy((*commands, train), "; ".join(effort))


def _harness(*arguments: str) -> str:
    return shell_command(["harness", *arguments])


def _own_folder(artefacts: str | None) -> tuple[list[str], list[str], str | None]:
    """Return what makes a folder of the user's of what ``--artefacts`` names, what to know of it, and that folder.

    A shipped set's name means a folder of that name in the working directory, once there is one.
    """
    if artefacts is None:
        return [], [], None
    there = Path(artefacts)
    shipped = there if there.is_dir() else SHIPPED / artefacts
    if not real_path(shipped).is_relative_to(SHIPPED) or not shipped.is_dir():
        return [], [], artefacts
    copy = artefacts if shipped != there and artefacts == shipped.name else f"{shipped.name}-copy"
    then = "the copy is your own and what --artefacts then means" if copy == artefacts else f"give --artefacts {copy}"
    return [shell_command(["cp", "-r", str(shipped), copy])], [then], copy


def _traces(model: ModelInfo) -> tuple[str, bool]:
    """Return a folder with a trace of this very model and true, or else a free one and false."""
    name, number = Path(model.name).name, 1
    wanted = (model.fingerprint, model.exit_head, list(model.exit_points))
    while True:
        folder = Path("traces") / (name if number == 1 else f"{name}-{number}")
        try:
            index = read_json(folder / "index.json")
            if (index["model_fingerprint"], index["exit_head"], index["exit_points"]) == wanted and index["shards"]:
                return str(folder), True
        except (NotRegularError, ValueError, KeyError, TypeError):
            pass  # whatever that is, it is not overwritten
        except OSError:
            return str(folder), False
        number += 1
