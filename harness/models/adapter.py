"""LoRA adapters that tuned a model: which one belongs to its weights, and merging it into them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.contracts import ModelInfo
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact, read_artefact
from harness.models.remedy import remedy

__all__ = ["find_adapter", "merge", "require_adapter"]


def find_adapter(base: str, folders: Sequence[Path]) -> Artefact | None:
    """Return the first adapter that was trained on the weights with this fingerprint."""
    for folder in folders:
        if (folder / "adapter.json").is_file():
            adapter = read_artefact(folder / "adapter.json", "adapter")
            if adapter.facts["model_fingerprint"] == base:
                return adapter
    return None


def require_adapter(model: ModelInfo, folders: Sequence[Path]) -> Artefact:
    """Return what :func:`find_adapter` finds for base weights.

    Raises:
        ArtefactError: nothing; says how to make one, or whose the adapters there are.
    """
    found = find_adapter(model.fingerprint, folders)
    if found is not None:
        return found
    others = ""
    for file in (folder / "adapter.json" for folder in folders if (folder / "adapter.json").is_file()):
        theirs = read_artefact(file, "adapter").facts["model_fingerprint"]
        others += f" {file} was trained on weights {theirs}, these are {model.fingerprint}."
    instead = ", or use --weights pretrained." if model.asked.weights == "tuned" else "."
    raise ArtefactError(
        f"there is no adapter for {model.name}.{others} Make it with {remedy('adapter', model, 'adapter')}{instead}"
    )


def merge(module: Any, adapter: Artefact) -> None:
    """Add an adapter's low-rank updates to the weights of a transformers model, in place.

    ``W += scale · B A`` in float32 (Hu 2021, arXiv 2106.09685), so that decoding pays nothing for it.

    Raises:
        ArtefactError: the adapter names a module the model has not, or one of another shape.
    """
    factors: dict[str, dict[str, Any]] = {}
    for name, tensor in adapter.tensors().items():
        target, _, side = name.rpartition(".")
        factors.setdefault(target, {})[side] = tensor
    modules = dict(module.named_modules())
    scale = float(adapter.facts["scale"])
    for target, sides in factors.items():
        weight = getattr(modules.get(target), "weight", None)
        if weight is None or set(sides) != {"lora_A", "lora_B"}:
            raise ArtefactError(f"{adapter.path} tunes {target}, which this model has not.")
        update = scale * (sides["lora_B"].float() @ sides["lora_A"].float())
        if type(modules[target]).__name__ == "Conv1D":
            update = update.t()
        if update.shape != weight.shape:
            raise ArtefactError(f"{adapter.path}: {target} has shape {tuple(weight.shape)}, not {tuple(update.shape)}.")
        weight.data = (weight.data.float() + update).to(weight.dtype)
