"""Identity of a trained artefact: the model it belongs to, and how it was made."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from harness.contracts import ModelInfo
from harness.contracts.recipes import TrainingRun
from harness.errors import ArtefactError
from harness.host import environment
from harness.models.artefacts import look_into
from harness.training.options import TraceChoice, TraceOptions


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


def own_file(options: TraceChoice, run: TrainingRun, info: ModelInfo) -> Path:
    """Return where a recipe writes what it learns from a trace, ``NAME.json`` in its folder."""
    assert isinstance(options, TraceOptions)
    path = options.folder / f"{options.name or run.recipe}.json"
    facts = {} if options.overwrite else look_into(path)
    for what, fact, ours in (
        ("weights", "model_fingerprint", info.fingerprint),
        ("exit head", "exit_head", info.exit_head),
        ("exit points", "exit_points", list(info.exit_points)),
    ):
        if facts.get(fact, ours) != ours:
            raise ArtefactError(
                f"{path} was trained for {what} {facts[fact]}, and {options.traces} has {ours}. Give --name NAME to "
                "keep both, or --overwrite."
            )
    return path


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
