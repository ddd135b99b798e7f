"""The commands that make an artefact which a run did not find: with the run's own flags."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from harness.contracts import ModelInfo
from harness.models.artefacts import SHIPPED

__all__ = ["remedy"]


def remedy(kind: str, model: ModelInfo, name: str, folder: Path | None = None) -> str:
    """Return the commands in order, after which the same run finds what it looked for.

    A controller wants tuning first where the run would take an adapter and there is none. A trace of the same model
    that lies in its usual place is not made again. A shipped set is copied, never written to.

    Args:
        kind: what ``harness train`` shall make: ``adapter``, ``shortcut`` or a controller.
        model: as the run asked for it; for shortcuts, with the exit head that they are fitted on.
        name: of the file, without its ending.
        folder: the one the run looks in, if it named the file by a path.
    """
    asked, plain = model.asked, Path(model.name).name
    given = ["--model", asked.model or model.name]
    head = "shared" if kind == "shortcut" else asked.exit_head
    exits = [] if head == "auto" else ["--exit-head", head]
    exits += [] if asked.exit_points == "paper" else ["--exit-points", asked.exit_points]
    commands, place = _own_folder(asked.artefacts)
    found = [] if place is None else ["--artefacts", place]
    if place is None and Path(given[1]).name != plain:  # a folder given as . or the like
        place = f"artefacts/{plain}"
    out = [] if place is None else ["--out", place]
    lite = _harness("train", "lite", *given, *exits, *out)
    if kind == "adapter":
        return " ; ".join([*commands, f"{lite} (hours)"])
    traces, fits = _traces(model)
    if not fits:
        if kind != "shortcut" and asked.weights == "auto" and model.weights == "pretrained":
            commands.append(f"{lite} (hours; without it the base weights serve)")
        flags = [] if asked.weights == "auto" else ["--weights", asked.weights]
        flags += [] if asked.dtype == "float32" else ["--dtype", asked.dtype]
        flags += ["--seed", str(asked.seed)] if model.weights == "random" and asked.seed else []
        trace = _harness("trace", *given, *flags, *exits, *found, "--out", traces)
        commands.append(f"{trace} (minutes to hours)")
    note = ""
    if folder is not None and folder.resolve().is_relative_to(SHIPPED):
        note = f"; then give the name {name} without a folder"
    elif folder is not None:
        out = ["--out", str(folder)]
    named = [] if name == kind else ["--name", name]
    train = _harness("train", kind, *given, "--traces", traces, *found, *out, *named)
    return " ; ".join([*commands, f"{train} (minutes{note})"])


def _harness(*arguments: str) -> str:
    return f"`{shlex.join(['harness', *arguments])}`"


def _own_folder(artefacts: str | None) -> tuple[list[str], str | None]:
    """Return what makes a folder of the user's of what ``--artefacts`` names, and that folder.

    A shipped set's name means a folder of that name in the working directory, once there is one.
    """
    if artefacts is None:
        return [], None
    there = Path(artefacts)
    shipped = there if there.is_dir() else SHIPPED / artefacts
    if not shipped.resolve().is_relative_to(SHIPPED) or not shipped.is_dir():
        return [], artefacts
    copy = artefacts if shipped != there and artefacts == shipped.name else f"{shipped.name}-copy"
    then = "your own, which --artefacts then means" if copy == artefacts else f"then give --artefacts {copy}"
    return [f"`{shlex.join(['cp', '-r', str(shipped), copy])}` ({then})"], copy


def _traces(model: ModelInfo) -> tuple[str, bool]:
    """Return a folder with a trace of this very model and true, or else a free one and false."""
    name, number = Path(model.name).name, 1
    wanted = (model.fingerprint, model.exit_head, list(model.exit_points))
    while True:
        folder = Path("traces") / (name if number == 1 else f"{name}-{number}")
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            if (index["model_fingerprint"], index["exit_head"], index["exit_points"]) == wanted and index["shards"]:
                return str(folder), True
        except OSError:
            return str(folder), False
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # whatever that is, it is not overwritten
        number += 1
