"""Where what a strategy has learned lies, and whether it was made for the model that runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from harness.contracts import ModelInfo
from harness.errors import ArtefactError
from harness.models.artefacts import PICKLES, Artefact, json_path, look_into, read_artefact
from harness.models.trained import remedy

FILES = {".json", ".safetensors", *PICKLES}
"""Endings by which a path is known from a name such as ``rl-0.5``."""


def controller_path(kind: str, name: str, model: ModelInfo) -> Path:
    """Return where a controller lies: the first of its name that was made for this model, or else the first.

    Args:
        kind: its artefact kind.
        name: what the user gave: a path, a name without folder and suffix, or nothing for ``kind`` itself.
        model: whose artefact folders are searched.

    Raises:
        ArtefactError: nothing there; names the commands.
    """
    given = Path(name or kind)
    if given.suffix in FILES or len(given.parts) > 1:
        return given
    there = [path for folder in model.artefacts if (path := Path(folder) / f"{given}.json").is_file()]
    if there:
        return next((path for path in there if len(there) > 1 and _is_of(path, kind, model)), there[0])
    places = ", ".join(model.artefacts) or f"artefacts/{Path(model.name).name}"
    others = sorted({path.stem for folder in model.artefacts for path in Path(folder).glob(f"{kind}*.json")})
    known = f" There are: {', '.join(others)}." if others else ""
    steps = remedy(kind, model, str(given))
    raise ArtefactError(
        f"there is no {given}.json for {model.name} in {places}.{known} Make it with ({steps.effort}):", steps.commands
    )


def _is_of(path: Path, kind: str, model: ModelInfo) -> bool:
    facts = look_into(path)
    wanted = (kind, model.fingerprint, model.exit_head)
    return (facts.get("kind"), facts.get("model_fingerprint"), facts.get("exit_head")) == wanted


def find_trained(
    kind: str,
    name: str,
    model: ModelInfo,
    needed: tuple[str, ...] = (),
    same_exits: Callable[[Artefact], bool] = lambda _: True,
) -> Artefact:
    """Find what a strategy has learned and check that it was made for this model; reads no tensors.

    Args:
        kind: its artefact kind.
        name: what the user gave: a path, a name without folder and suffix, or nothing for ``kind`` itself.
        model: whose artefact folders are searched.
        needed: facts without which it is of no use, besides those by which it knows its model.
        same_exits: whether it must be asked at the exit points it was trained at; else at some of them.

    Raises:
        ArtefactError: missing, or made for other weights, exit points or another exit head; gives both values.
    """
    path = controller_path(kind, name, model)
    stamp = json_path(path)
    changed = stamp.stat().st_mtime_ns if stamp.is_file() else 0
    artefact = _read(path, kind, needed, changed)
    facts = artefact.facts
    elsewhere = stamp.parent if path == Path(name) else None
    steps = partial(remedy, kind, model, stamp.stem, elsewhere, overwrite=True)
    for what, theirs, ours in (
        ("weights", facts["model_fingerprint"], model.fingerprint),
        ("exit head", facts["exit_head"], model.exit_head),
        ("hidden size", facts["hidden_size"], model.hidden_size),
    ):
        if theirs != ours:
            make = steps(tune=what == "weights")
            instead = _instead(what, facts, model)
            lead = f"{instead}, or train it again" if instead else "Train it for this model"
            raise ArtefactError(
                f"{path} was trained with {what} {theirs} ({facts['model']}); {model.name} runs with {ours}. "
                f"{lead} ({make.effort}):",
                make.commands,
            )
    known = tuple(facts["exit_points"])
    fits = known == model.exit_points if same_exits(artefact) else set(model.exit_points) <= set(known)
    if not fits:
        make = steps(tune=False)
        raise ArtefactError(
            f"{path} was trained at exit points {', '.join(map(str, known))}; this run has "
            f"{', '.join(map(str, model.exit_points))}. Use --exit-points {','.join(map(str, known))}, or train it "
            f"again ({make.effort}):",
            make.commands,
        )
    return artefact


def _instead(what: str, facts: Mapping[str, Any], model: ModelInfo) -> str:
    """Return the flag that lets a run take a controller as it is; empty where there is none."""
    if what == "weights" and model.asked.weights == "pretrained" and facts["model"] == model.name:
        return "Leave out --weights pretrained"
    if what == "exit head" and facts["exit_head"] == "shared":
        return "Give --exit-head shared, for which it was trained"
    if what == "exit head" and model.asked.exit_head == "shared":
        return "Leave out --exit-head shared"
    return ""


@lru_cache(maxsize=32)
def _read(path: Path, kind: str, needed: tuple[str, ...], changed: int) -> Artefact:
    artefact = read_artefact(path, kind)
    for key in ("model", "model_fingerprint", "exit_head", "hidden_size", "exit_points", *needed):
        if key not in artefact.facts:
            raise ArtefactError(f"{path} lacks what a {kind} needs ('{key}'). Train it again.")
    return artefact
