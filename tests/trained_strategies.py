"""What is asked of every strategy with trained parts: its answer to a view, and what its checks cost in the engine."""

from __future__ import annotations

from typing import Any

import torch

from harness.contracts import Batch, ModelInfo, Strategy
from harness.decoding.engine import Engine

PROMPTS, NEW = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [300, 7, 4, 99, 12]], 8


def answer(strategy: Strategy, model: ModelInfo, seen: Any) -> list[bool]:
    """Which rows of a view leave."""
    decided = strategy.start(model, Batch((0,) * len(seen.rows), "cpu")).should_exit(seen)
    assert decided.dtype == torch.bool
    assert decided.shape == (len(seen.rows),)
    answers: list[bool] = decided.tolist()
    return answers


def check_costs(engine: Engine, strategy: Strategy, kv: str) -> None:
    """A batch decodes as its prompts do alone, and what is read is the outputs' own: checks read no LM head."""
    together = engine.decode(PROMPTS, strategy, kv=kv, max_new_tokens=[NEW] * 3)
    for prompt, one in zip(PROMPTS, together, strict=True):
        (alone,) = engine.decode([prompt], strategy, kv=kv, max_new_tokens=[NEW])
        assert (one.token_ids, one.exit_layers) == (alone.token_ids, alone.exit_layers)
        asked = one.exit_layers if kv == "none" else one.exit_layers[1:]
        assert one.lm_head_evaluations == len(asked)  # the output's own
        assert one.exit_checks == sum(sum(point <= layer for point in engine.info.exit_points) for layer in asked)
    assert any(layer < engine.info.num_layers for one in together for layer in one.exit_layers)
