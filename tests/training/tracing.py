"""``harness trace`` as a function, and what is made by hand: a trace's facts, and episodes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.contracts.recipes import Progress, Silent
from harness.training.agents.episodes import Episodes, TracedDocument
from harness.training.agents.reward import Reward, reward_table
from harness.training.options import TraceCommand
from harness.training.traces.record_trace import trace
from harness.training.traces.store import Traces

FACTS: dict[str, Any] = {
    "model": "toy", "model_fingerprint": "a" * 16, "tokenizer_fingerprint": "b" * 16, "exit_points": [4, 6],
    "exit_head": "shared", "num_layers": 8, "hidden_size": 8, "weights": "pretrained", "dtype": "float32", "seed": 0,
    "length": 64,
}  # fmt: skip
"""Of a trace that no model made."""


def episodes_of(right: Tensor, observations: Tensor, lengths: Sequence[int], reward: Reward, length: int) -> Episodes:
    """Episodes of so many tokens of each document, at exits 4, 6 and 10 of 12 layers."""
    points = (4, 6, 10)
    rewards, optimal = reward_table(right, points, 12, reward)
    starts = itertools.accumulate(lengths, initial=0)
    documents = (
        TracedDocument(number, f"k{number}", "py150, x", start, tokens, 0, tokens)
        for number, (start, tokens) in enumerate(zip(starts, lengths, strict=False))
    )
    return Episodes(
        observations.numpy(), rewards.numpy(), right.numpy(), optimal.numpy(), tuple(documents), length,
        generated=False, exit_points=points, num_layers=12,
    )  # fmt: skip


def trace_of(
    model: Path | str, source: Path | str, out: Path, *tasks: str, progress: Progress | None = None, **changes: Any
) -> Traces:
    """Trace untuned weights at their own exit head on the CPU; changes are the command's options."""
    settings: dict[str, Any] = {
        "model": str(model), "tasks": tasks or ["py150"], "sources": [str(source)], "out": out, "device": "cpu",
        "weights": "pretrained", "exit_head": "shared", **changes,
    }  # fmt: skip
    return trace(TraceCommand.build(settings), progress or Silent())
