"""Trained parts of a model: where they are looked for, which belong to it, and the commands that make a missing one.

One finder serves whoever needs a part. An adapter (LoRA updates of the layers), shortcuts (a linear layer per exit) and
what cheap heads are made from have one name each; what a strategy has learned has any. A part belongs to weights by
their fingerprint: base weights, or with an adapter merged.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from harness.appearance.visible_text import shell_command, shell_word
from harness.contracts import ModelInfo
from harness.errors import ArtefactError, ConfigError
from harness.host.files import NotRegularError, read_json, real_path
from harness.models.artefacts import NEEDED, PICKLES, SHIPPED, Artefact, json_path, look_into, read_artefact

logger = logging.getLogger(__name__)


def artefact_folders(model: str, given: str | None) -> tuple[Path, ...]:
    """Return where artefacts of a model are looked for, in this order."""
    name = Path(model).name
    if given is None:
        return tuple(folder for folder in (Path("artefacts") / name, SHIPPED / name) if folder.is_dir())
    for folder in (Path(given), SHIPPED / given):
        if folder.is_dir():
            return (folder,)
    shipped = sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir()) if SHIPPED.is_dir() else []
    raise ConfigError(f"--artefacts {given} is no folder. Shipped sets: {', '.join(shipped) or 'none'}.")


def tuned_fingerprint(base: str, adapter_sha256: str) -> str:
    """Return the fingerprint of a base model with an adapter merged into it."""
    return hashlib.sha256(f"{base} {adapter_sha256}".encode()).hexdigest()[:16]


def belongs_to(facts: Mapping[str, Any]) -> str:
    """Return the fingerprint of the weights that an artefact belongs to: base weights, or with an adapter merged."""
    base, adapter = str(facts.get("model_fingerprint", "")), facts.get("adapter_sha256")
    return tuned_fingerprint(base, adapter) if adapter else base


@dataclass(frozen=True, slots=True)
class Missing:
    """A part that no folder has for a model."""

    refusal: Callable[[], ArtefactError]


def find(kind: str, model: ModelInfo, folders: Iterable[str | Path] | None = None) -> Artefact | Missing:
    """Return the first part of a kind that belongs to a model; reads no tensors."""
    places, misfits = tuple(map(Path, model.artefacts if folders is None else folders)), ""
    for file in _files(kind, places):
        artefact = _read(file, kind, _changed(file))
        misfit = _MISFITS.get(kind, _head_misfit)(artefact.facts, model)
        if not misfit:
            return artefact
        misfits += f" {file} {misfit}."
    if kind == "shortcut":
        _warn_of_lost_shortcuts(model.fingerprint, places, model.exit_points)
    return Missing(partial(_missing, kind, model, places, misfits))


def require(found: Artefact | Missing) -> Artefact:
    """Return what was found."""
    if isinstance(found, Missing):
        raise found.refusal()
    return found


def _files(kind: str, folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        if kind == "shortcut":  # the one with the plain name first
            yield from sorted(folder.glob("shortcut*.json"), key=lambda file: (file.stem != "shortcut", file.name))
        elif (file := folder / f"{kind}.json").is_file() or (kind == "adapter" and os.path.lexists(file)):
            yield file


def _adapter_misfit(facts: Mapping[str, Any], model: ModelInfo) -> str:
    theirs = facts["model_fingerprint"]
    return "" if theirs == model.fingerprint else f"was trained on weights {theirs}, these are {model.fingerprint}"


def _shortcut_misfit(facts: Mapping[str, Any], model: ModelInfo) -> str:
    theirs, points = belongs_to(facts), facts["exit_points"]
    fits = theirs == model.fingerprint and set(model.exit_points) <= set(points)
    return "" if fits else f"is of weights {theirs}, exit points {_listed(points)}"


def _head_misfit(facts: Mapping[str, Any], model: ModelInfo) -> str:
    for what, name, ours in (
        ("base weights", "base_fingerprint", model.base_fingerprint),
        ("weights", "model_fingerprint", model.fingerprint),
        ("exit head", "exit_head", model.exit_head),
    ):
        if name in facts and facts[name] != ours:
            return f"is of {what} {facts[name]}, and these are {ours}"
    return ""


_MISFITS = {"adapter": _adapter_misfit, "shortcut": _shortcut_misfit}
"""Kind → says in a clause why a part is not of a model; empty where it is."""


def _missing(kind: str, model: ModelInfo, folders: Sequence[Path], others: str) -> ArtefactError:
    what, lead = f"is no {kind}.json for {model.name}", "Use head=full, or make it"
    if kind == "adapter":
        what = f"is no adapter for {model.name}"
        lead = "Use --weights pretrained, or make it" if model.asked.weights == "tuned" else "Make it"
        for folder in (folder for folder in folders if (folder / "tuning.json").is_file()):
            whole = f"--model {shell_word(folder / 'model')} --artefacts {shell_word(folder)}"
            others += f" {folder} holds weights that were tuned as a whole, a model of their own: {whole}."
    elif kind == "shortcut":
        wanted = f"weights {model.fingerprint}, exit points {_listed(model.exit_points)}"
        what, lead = f"are no shortcuts for {model.name} ({wanted})", "Use --exit-head shared, or make them"
    make = remedy(kind, model, kind)
    return ArtefactError(f"there {what}.{others} {lead} with ({make.effort}):", make.commands)


@lru_cache(maxsize=64)
def _warn_of_lost_shortcuts(weights: str, folders: Sequence[Path], exit_points: Sequence[int]) -> None:
    """Say once where an adapter has lost the shortcuts that were tuned along with it."""
    for file in _files("adapter", folders):
        adapter = read_artefact(file, "adapter")
        tuned = tuned_fingerprint(adapter.facts["model_fingerprint"], adapter.sha256)
        if tuned == weights and adapter.facts.get("exit_head") == "shortcut":
            logger.warning(
                "%s was tuned along with shortcuts, and none here lead from exit points %s: exits are read by the "
                "shared head",
                *(file, _listed(exit_points)),
            )
            return


def find_trained(
    kind: str,
    name: str,
    model: ModelInfo,
    needed: tuple[str, ...] = (),
    same_exits: Callable[[Artefact], bool] = lambda _: True,
) -> Artefact:
    """Find what a strategy has learned and check that it was made for this model; reads no tensors."""
    path = _learned_path(kind, name, model)
    stamp = json_path(path)
    artefact = _read(path, kind, _changed(stamp))
    facts = artefact.facts
    for key in ("model", "model_fingerprint", "exit_head", "hidden_size", "exit_points", *needed):
        if key not in facts:
            raise ArtefactError(f"{path} lacks what a {kind} needs ('{key}'). Train it again.")
    elsewhere = stamp.parent if path == Path(name) else None
    steps = partial(remedy, kind, model, stamp.stem, elsewhere, overwrite=True)
    for what, theirs, ours in (
        ("weights", facts["model_fingerprint"], model.fingerprint),
        ("exit head", facts["exit_head"], model.exit_head),
        ("hidden size", facts["hidden_size"], model.hidden_size),
    ):
        if theirs != ours:
            make = steps(tune=what == "weights")
            instead = _flag_instead(what, facts, model)
            lead = f"{instead}, or train it again" if instead else "Train it for this model"
            raise ArtefactError(
                f"{path} was trained with {what} {theirs} ({facts['model']}); {model.name} runs with {ours}. "
                f"{lead} ({make.effort}):",
                make.commands,
            )
    known = tuple(facts["exit_points"])
    if not (known == model.exit_points if same_exits(artefact) else set(model.exit_points) <= set(known)):
        make = steps(tune=False)
        raise ArtefactError(
            f"{path} was trained at exit points {_listed(known)}; this run has {_listed(model.exit_points)}. Use "
            f"--exit-points {','.join(map(str, known))}, or train it again ({make.effort}):",
            make.commands,
        )
    return artefact


def _learned_path(kind: str, name: str, model: ModelInfo) -> Path:
    given = Path(name or kind)
    if given.suffix in (".json", ".safetensors", *PICKLES) or len(given.parts) > 1:  # a name such as rl-0.5 has dots
        return given
    there = [path for folder in model.artefacts if (path := Path(folder) / f"{given}.json").is_file()]
    if not there:
        places = ", ".join(model.artefacts) or f"artefacts/{Path(model.name).name}"
        others = sorted({path.stem for folder in model.artefacts for path in Path(folder).glob(f"{kind}*.json")})
        known = f" There are: {', '.join(others)}." if others else ""
        steps = remedy(kind, model, str(given))
        raise ArtefactError(
            f"there is no {given}.json for {model.name} in {places}.{known} Make it with ({steps.effort}):",
            steps.commands,
        )
    wanted = {"kind": kind, "model_fingerprint": model.fingerprint, "exit_head": model.exit_head}
    ours = (path for path in there if len(there) > 1 and wanted.items() <= look_into(path).items())
    return next(ours, there[0])


def _flag_instead(what: str, facts: Mapping[str, Any], model: ModelInfo) -> str:
    """Return the flag that lets a run take a controller as it is; empty where there is none."""
    if what == "weights" and model.asked.weights == "pretrained" and facts["model"] == model.name:
        return "Leave out --weights pretrained"
    if what == "exit head" and facts["exit_head"] == "shared":
        return "Give --exit-head shared, for which it was trained"
    if what == "exit head" and model.asked.exit_head == "shared":
        return "Leave out --exit-head shared"
    return ""


@lru_cache(maxsize=64)
def _read(path: Path, kind: str, changed: int) -> Artefact:
    return read_artefact(path, kind)


def _changed(file: Path) -> int:
    return file.stat().st_mtime_ns if file.is_file() else 0


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers))


def shortcut_path(wanted: Path, weights: str, exit_points: Sequence[int]) -> Path:
    """Return where shortcuts are written, so that none of other weights or exit points are lost."""
    own = f"{wanted.stem}-{weights[:8]}"
    for name in chain([wanted.stem, own], (f"{own}-{number}" for number in count(2))):
        path = wanted.with_name(f"{name}.json")
        facts = look_into(path)
        readable = facts.get("kind") == "shortcut" and facts.keys() >= set(NEEDED["shortcut"])
        if not readable or (belongs_to(facts), facts["exit_points"]) == (weights, list(exit_points)):
            break  # what is no shortcut stops every run until it is replaced
    if path != wanted:
        logger.warning("%s is of other weights or exit points and is kept: these shortcuts are %s", wanted, path)
    return path


@dataclass(frozen=True, slots=True)
class Remedy:
    """The way to make a missing artefact."""

    commands: tuple[str, ...]
    effort: str


def remedy(
    kind: str, model: ModelInfo, name: str, folder: Path | None = None, *, tune: bool = True, overwrite: bool = False
) -> Remedy:
    """Return the commands in order, after which the same run finds what it looked for."""
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
    """Return what makes a folder of the user's of what ``--artefacts`` names, what to know of it, and that folder."""
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
