"""The answer of a strategy with trained parts to a view, and prompts for the engine."""

from __future__ import annotations

from typing import Any

import torch

from harness.contracts import Batch, ModelInfo, Strategy

PROMPTS, NEW = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [300, 7, 4, 99, 12]], 8


def answer(strategy: Strategy, model: ModelInfo, seen: Any) -> list[bool]:
    """Which rows of a view leave."""
    decided = strategy.start(model, Batch((0,) * len(seen.rows), "cpu")).should_exit(seen)
    assert decided.dtype == torch.bool
    assert decided.shape == (len(seen.rows),)
    answers: list[bool] = decided.tolist()
    return answers
