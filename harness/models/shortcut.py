"""Shortcuts, a linear layer per exit: which ones belong to a model's weights and exit points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.contracts import ModelInfo
from harness.decoding.blocks import Linear
from harness.errors import ArtefactError
from harness.models import fingerprint
from harness.models.artefacts import Artefact, read_artefact
from harness.models.remedy import remedy

__all__ = ["find_shortcut", "read_shortcuts", "require_shortcut"]


def find_shortcut(weights: str, folders: Sequence[Path], exit_points: Sequence[int]) -> Artefact | None:
    """Return the first shortcuts that lead from these exit points of the weights with this fingerprint."""
    for folder in folders:
        for file in _shortcut_files(folder):
            found = read_artefact(file, "shortcut")
            if _belongs_to(found) == weights and set(exit_points) <= set(found.facts["exit_points"]):
                return found
    return None


def require_shortcut(model: ModelInfo, folders: Sequence[Path]) -> Artefact:
    """Return what :func:`find_shortcut` finds for a model that has none yet.

    Raises:
        ArtefactError: nothing; says how to make them.
    """
    found = find_shortcut(model.fingerprint, folders, model.exit_points)
    if found is not None:
        return found
    others = ""
    for file in (file for folder in folders for file in _shortcut_files(folder)):
        theirs = read_artefact(file, "shortcut")
        points = ", ".join(map(str, theirs.facts["exit_points"]))
        others += f" {file} is of weights {_belongs_to(theirs)}, exit points {points}."
    wanted = ", ".join(map(str, model.exit_points))
    raise ArtefactError(
        f"there are no shortcuts for {model.name} (weights {model.fingerprint}, exit points {wanted}).{others} "
        f"Make them with {remedy('shortcut', model, 'shortcut')}, or use --exit-head shared."
    )


def _shortcut_files(folder: Path) -> list[Path]:
    """Return the shortcuts of a folder, the one with the plain name first."""
    return sorted(folder.glob("shortcut*.json"), key=lambda file: (file.stem != "shortcut", file.name))


def _belongs_to(shortcut: Artefact) -> str:
    """Return the fingerprint of the weights that shortcuts belong to: base weights, or with an adapter merged."""
    base, adapter = shortcut.facts["model_fingerprint"], shortcut.facts.get("adapter_sha256")
    return fingerprint.tuned(base, adapter) if adapter else str(base)


def read_shortcuts(shortcut: Artefact, exit_points: Sequence[int], dtype: Any, device: str) -> Mapping[int, Linear]:
    """Return exit layer → shortcut, in the model's dtype."""
    tensors = shortcut.tensors(device)
    return {
        layer: Linear(tensors[f"{layer}.weight"].to(dtype), tensors[f"{layer}.bias"].to(dtype)) for layer in exit_points
    }
