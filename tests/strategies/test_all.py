"""What every registered strategy promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.config import StrategySpec
from harness.config.options import build_strategy
from harness.contracts import Batch, ModelInfo
from harness.registry import STRATEGIES

LEARNED = ("classifier", "consistent", "hash", "lte", "predictor", "rl", "sec")  # see ``test_learned.py``
NAMES = tuple(name for name in STRATEGIES.names() if name not in (*LEARNED, "endpoint"))
TELLING = {
    "confidence": {"threshold": "0.6"},
    "entropy": {"threshold": "0.7"},
    "margin": {"threshold": "0.4", "decay": "3"},
    "patience": {"patience": "2"},
    "saturation": {"threshold": "0.2"},
    "random": {"probability": "0.5"},
    "free": {"layer": "8", "threshold": "0.6"},
    "shortlist": {"threshold": "0.6", "size": "2"},
    "schedule": {"first": "12", "last": "4", "horizon": "8"},
}


@pytest.mark.parametrize("name", NAMES)
def test_n_rows_at_once_are_n_rows_one_by_one(name: str, random_view: Any, model: ModelInfo) -> None:
    strategy = build_strategy(StrategySpec(name, tuple(TELLING.get(name, {}).items())))
    together = strategy.start(model, Batch(tuple(range(12)), "cpu")).should_exit(random_view)
    alone = []
    for place in range(12):
        rule = strategy.start(model, Batch(tuple(range(12)), "cpu"))
        alone.append(rule.should_exit(random_view.of([place])))
    assert together.shape == (12,)
    assert together.dtype == torch.bool
    assert torch.equal(together, torch.cat(alone))
    if name not in ("full", "fixed", "layerskip", "del", "swift", "clasp", "pruned"):  # alike for all rows at first
        assert together.any()
        assert not together.all()


@pytest.mark.parametrize("name", NAMES)
def test_exit_points_are_the_model_s(name: str, model: ModelInfo) -> None:
    points = build_strategy(StrategySpec(name)).exit_points(model)
    assert set(points) <= set(model.exit_points)
    assert list(points) == sorted(points)
