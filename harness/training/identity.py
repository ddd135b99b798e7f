"""What everything trained says of itself: the model it belongs to, and how it was made."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import torch

from harness.contracts import ModelInfo
from harness.host import environment

__all__ = ["exit_head_note", "identity", "provenance"]


def identity(info: ModelInfo, tokenizer: str) -> dict[str, Any]:
    """Return the facts by which an artefact knows its model; ``tokenizer`` is its fingerprint."""
    return {
        "model": info.name,
        "model_fingerprint": info.fingerprint,
        "base_fingerprint": info.base_fingerprint,
        "tokenizer_fingerprint": tokenizer,
        "num_layers": info.num_layers,
        "hidden_size": info.hidden_size,
        "exit_points": list(info.exit_points),
        "exit_head": info.exit_head,
    }


def exit_head_note(exit_head: str) -> str:
    """Say which exit head a controller was trained for, and how a run comes by it."""
    how = "run it with --exit-head shared" if exit_head == "shared" else "a run takes it by itself"
    return f"It was trained for exit head {exit_head}: {how}."


def provenance(command: str) -> dict[str, Any]:
    """Return who made an artefact: command, date, machine, versions."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": environment.describe()["cpu"],
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
