"""Traced tokens with given columns, and facts of a model whose bytes are round numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.contracts import ModelInfo
from harness.decoding.blocks import Linear
from harness.suitability.exits import ReadExits
from harness.sweep.tokens import TracedTokens

POINTS, LAYERS, WIDTH = (4, 8), 12, 8


@pytest.fixture
def info() -> ModelInfo:
    return ModelInfo(
        "model", "llama", LAYERS, WIDTH, 50, POINTS, 100, "float32", "random", layer_bytes=1000, lm_head_bytes=500,
        kv_projection_bytes=100, kv_entry_bytes=0,
    )  # fmt: skip


@pytest.fixture
def read() -> Callable[..., ReadExits]:
    """``read(right, sure)``: which exits are right, ``[n, 2]`` bool, and their best probabilities; four documents."""

    def make(right: Any, sure: Any = None, maps: bool = False) -> ReadExits:
        hits = torch.as_tensor(right)
        count = len(hits)
        best = torch.as_tensor(sure).float() if sure is not None else hits.float()
        shard = {
            "hidden": torch.zeros(count, 2, WIDTH).half(),
            "top": torch.where(hits, 7, 3).int(),
            "final": torch.full((count,), 7).int(),
            "document": (torch.arange(count) * 4 // count).int(),
            "position": torch.arange(count).int(),
            "input": torch.zeros(count, dtype=torch.int32),
            "top1": best.half(),
            "top2": (best / 4).half(),
            "entropy": (1 - best).half(),
        }
        lines = {point: Linear(torch.eye(WIDTH)) for point in POINTS} if maps else {}
        tokens = TracedTokens(POINTS, [(shard, torch.arange(count))], lines, ["a", "b", "c", "d"], generated=False)
        return ReadExits("plain", True, tokens, torch.where(hits, 1, 20))

    return make
