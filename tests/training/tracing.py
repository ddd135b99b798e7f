"""``harness trace`` as a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.contracts.recipes import Progress, Silent
from harness.training.options import TraceCommand
from harness.training.traces.record_trace import trace
from harness.training.traces.store import Traces


def trace_of(
    model: Path | str, source: Path | str, out: Path, *tasks: str, progress: Progress | None = None, **changes: Any
) -> Traces:
    """Trace untuned weights at their own exit head on the CPU; changes are the command's options."""
    settings: dict[str, Any] = {
        "model": str(model), "tasks": tasks or ["py150"], "sources": [str(source)], "out": out, "device": "cpu",
        "weights": "pretrained", "exit_head": "shared", **changes,
    }  # fmt: skip
    return trace(TraceCommand.build(settings), progress or Silent())
