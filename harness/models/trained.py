"""What training has added to a model: which adapter and which shortcuts belong to its weights, and putting them in.

An adapter holds the LoRA updates of its layers; shortcuts are a linear layer per exit. Both are artefacts, told apart
by a fingerprint of the weights they were trained on.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.appearance.visible_text import shell_word
from harness.contracts import ModelInfo
from harness.errors import ArtefactError, ConfigError
from harness.models.artefact_facts import NEEDED
from harness.models.artefacts import SHIPPED, Artefact, look_into, read_artefact
from harness.models.finite import fault_of
from harness.models.remedy import remedy

if TYPE_CHECKING:
    from torch import Tensor

    from harness.decoding.blocks import Linear

__all__ = [
    "artefact_folders",
    "belongs_to",
    "find_adapter",
    "find_shortcut",
    "merge",
    "read_shortcuts",
    "require_adapter",
    "require_shortcut",
    "shortcut_path",
    "tuned_fingerprint",
]

logger = logging.getLogger(__name__)


def artefact_folders(model: str, given: str | None) -> tuple[Path, ...]:
    """Return where artefacts of a model are looked for, in this order.

    Args:
        model: catalogue name, hub id or folder name.
        given: ``--artefacts``: a folder, or the name of a shipped set; ``None`` for the usual places.

    Raises:
        ConfigError: the folder given does not exist.
    """
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


def find_adapter(base: str, folders: Sequence[Path]) -> Artefact | None:
    """Return the first adapter that was trained on the weights with this fingerprint."""
    for folder in folders:
        if os.path.lexists(folder / "adapter.json"):  # what is no file is refused below, not passed over
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
    for file in (folder / "adapter.json" for folder in folders if os.path.lexists(folder / "adapter.json")):
        theirs = read_artefact(file, "adapter").facts["model_fingerprint"]
        others += f" {file} was trained on weights {theirs}, these are {model.fingerprint}."
    for folder in (folder for folder in folders if (folder / "tuning.json").is_file()):
        whole = f"--model {shell_word(folder / 'model')} --artefacts {shell_word(folder)}"
        others += f" {folder} holds weights that were tuned as a whole, a model of their own: {whole}."
    make = remedy("adapter", model, "adapter")
    lead = "Use --weights pretrained, or make it" if model.asked.weights == "tuned" else "Make it"
    raise ArtefactError(f"there is no adapter for {model.name}.{others} {lead} with ({make.effort}):", make.commands)


def merge(module: Any, adapter: Artefact) -> None:
    """Add an adapter's low-rank updates to the weights of a transformers model, in place.

    ``W += scale · B A`` in float32 (Hu 2021, arXiv 2106.09685), so that decoding pays nothing for it.

    Raises:
        ArtefactError: the adapter names a module the model has not, or one of another shape, or leaves a weight that is
            not finite.
    """
    factors: dict[str, dict[str, Any]] = {}
    for name, tensor in adapter.tensors().items():
        target, _, side = name.rpartition(".")
        factors.setdefault(target, {})[side] = tensor
    modules = dict(module.named_modules())
    if "scale" not in adapter.facts:
        raise ArtefactError(f"{adapter.path} does not say by which scale it was trained (scale). Train it again.")
    scale = float(adapter.facts["scale"])
    for target, sides in factors.items():
        weight = getattr(modules.get(target), "weight", None)
        if weight is None or set(sides) != {"lora_A", "lora_B"}:
            raise ArtefactError(f"{adapter.path} tunes {target}, which this model has not.")
        update = scale * _product(adapter, target, **sides)
        if type(modules[target]).__name__ == "Conv1D":
            update = update.t()
        if update.shape != weight.shape:
            raise ArtefactError(f"{adapter.path}: {target} has shape {tuple(weight.shape)}, not {tuple(update.shape)}.")
        weight.data = (weight.data.float() + update).to(weight.dtype)
        if fault := fault_of(weight.data):
            raise ArtefactError(f"{adapter.path}: {target} {fault} once it is merged. Train the adapter again.")


def _product(adapter: Artefact, target: str, lora_A: Tensor, lora_B: Tensor) -> Tensor:  # noqa: N803, peft's names
    """Return B A in float32."""
    if lora_A.ndim != 2 or lora_B.ndim != 2:
        raise ArtefactError(f"{adapter.path}: {target} is not tuned by two matrices. Train the adapter again.")
    rank = lora_A.shape[0]
    first, second = f"{target}.lora_A", f"{target}.lora_B"
    shapes = {first: (rank, lora_A.shape[1]), second: (lora_B.shape[0], rank)}
    adapter.check({first: lora_A, second: lora_B}, shapes)
    return lora_B.float() @ lora_A.float()


def find_shortcut(weights: str, folders: Sequence[Path], exit_points: Sequence[int]) -> Artefact | None:
    """Return the first shortcuts that lead from these exit points of the weights with this fingerprint."""
    for folder in folders:
        for file in _shortcut_files(folder):
            found = read_artefact(file, "shortcut")
            if belongs_to(found.facts) == weights and set(exit_points) <= set(found.facts["exit_points"]):
                return found
    _say_lost(weights, tuple(folders), tuple(exit_points))
    return None


@lru_cache(maxsize=64)
def _say_lost(weights: str, folders: Sequence[Path], exit_points: Sequence[int]) -> None:
    """Say once where an adapter has lost the shortcuts that were tuned along with it."""
    for file in (folder / "adapter.json" for folder in folders if os.path.lexists(folder / "adapter.json")):
        adapter = read_artefact(file, "adapter")
        tuned = tuned_fingerprint(adapter.facts["model_fingerprint"], adapter.sha256)
        if tuned == weights and adapter.facts.get("exit_head") == "shortcut":
            logger.warning(
                "%s was tuned along with shortcuts, and none here lead from exit points %s: exits are read by the "
                "shared head",
                *(file, ", ".join(map(str, exit_points))),
            )
            return


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
        others += f" {file} is of weights {belongs_to(theirs.facts)}, exit points {points}."
    wanted = ", ".join(map(str, model.exit_points))
    make = remedy("shortcut", model, "shortcut")
    raise ArtefactError(
        f"there are no shortcuts for {model.name} (weights {model.fingerprint}, exit points {wanted}).{others} "
        f"Use --exit-head shared, or make them with ({make.effort}):",
        make.commands,
    )


def shortcut_path(wanted: Path, weights: str, exit_points: Sequence[int]) -> Path:
    """Return where shortcuts are written, so that none of other weights or exit points are lost.

    Args:
        wanted: their JSON; where it holds others, the beginning of ``weights`` is added to its name.
        weights: fingerprint of those that they belong to, an adapter merged.
        exit_points: that they lead from.
    """
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


def _shortcut_files(folder: Path) -> list[Path]:
    """Return the shortcuts of a folder, the one with the plain name first."""
    return sorted(folder.glob("shortcut*.json"), key=lambda file: (file.stem != "shortcut", file.name))


def belongs_to(facts: Mapping[str, Any]) -> str:
    """Return the fingerprint of the weights that an artefact belongs to: base weights, or with an adapter merged.

    Shortcuts that were tuned with an adapter name the base weights and the adapter.
    """
    base, adapter = str(facts.get("model_fingerprint", "")), facts.get("adapter_sha256")
    return tuned_fingerprint(base, adapter) if adapter else base


def read_shortcuts(
    shortcut: Artefact, exit_points: Sequence[int], dtype: Any, device: str, *, hidden_size: int
) -> Mapping[int, Linear]:
    """Return exit layer → shortcut, in the model's dtype.

    Raises:
        ArtefactError: one is missing, of another width, or not finite in that dtype.
    """
    from harness.decoding.blocks import Linear  # here, since it brings torch, which reports do without

    shapes: dict[str, tuple[int, ...]] = {f"{layer}.weight": (hidden_size, hidden_size) for layer in exit_points}
    shapes |= {f"{layer}.bias": (hidden_size,) for layer in exit_points}
    read = shortcut.tensors(device, shapes)
    tensors = {name: read[name].to(dtype) for name in shapes}
    for name, tensor in tensors.items():
        if fault := fault_of(tensor):
            raise ArtefactError(f"{shortcut.path}: {name} {fault} in {tensor.dtype}. Use another --dtype.")
    return {layer: Linear(tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]) for layer in exit_points}
