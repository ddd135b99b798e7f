"""Thresholds lie at quantiles of the scores that a strategy showed, whatever its score is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.config import StrategySpec
from harness.config.options import option_range
from harness.contracts import ModelInfo
from harness.errors import ConfigError
from harness.sweep.grid import asks_for_thresholds, with_thresholds

COUNT = 400


@pytest.fixture
def tokens(made: Callable[..., Any]) -> Any:
    """Best probabilities 1/1200, 2/1200, … 1; entropies fall as they rise."""
    order = torch.randperm(3 * COUNT, generator=torch.Generator().manual_seed(0)).view(COUNT, 3)
    best = (order + 1) / (3 * COUNT)
    zeros = torch.zeros(COUNT, 3)
    return made(top=zeros, final=zeros[:, 0], top1=best, top2=best / 4, entropy=(1 - best) * math.log(50))


def thresholds(specs: list[StrategySpec]) -> list[float]:
    return [float(dict(spec.options)["threshold"]) for spec in specs]


def test_thresholds_are_quantiles_from_few_exits_to_many(tokens: Any, info: ModelInfo) -> None:
    found = thresholds(with_thresholds(StrategySpec("confidence"), 9, tokens, info))
    assert found == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], abs=0.012)


def test_a_score_that_counts_downwards_is_swept_upwards(tokens: Any, info: ModelInfo) -> None:
    found = thresholds(with_thresholds(StrategySpec("entropy"), 4, tokens, info))
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.025)


def test_skewed_scores_are_resolved(made: Callable[..., Any], info: ModelInfo) -> None:
    """Nine tenths of the scores lie within a hundredth of the range."""
    best = torch.cat((torch.linspace(0.49, 0.5, 270), torch.linspace(0, 0.49, 30)))
    best = best[torch.randperm(300, generator=torch.Generator().manual_seed(1))].view(100, 3)
    zeros = torch.zeros(100, 3)
    tokens = made(top=zeros, final=zeros[:, 0], top1=best)
    found = with_thresholds(StrategySpec("confidence"), 9, tokens, info)
    shares = [(best.half().float() >= threshold).float().mean().item() for threshold in thresholds(found)]
    assert shares == pytest.approx([place / 10 for place in range(1, 10)], abs=0.03)


def test_further_options_are_kept_and_values_are_short(tokens: Any, info: ModelInfo) -> None:
    found = with_thresholds(StrategySpec("margin", (("horizon", "20"),)), 5, tokens, info)
    assert all(spec.options[0] == ("horizon", "20") for spec in found)
    assert len(found) == 5
    assert all(len(dict(spec.options)["threshold"]) <= 5 for spec in found)


def test_scores_that_are_all_alike_leave_one_threshold(made: Callable[..., Any], info: ModelInfo) -> None:
    zeros = torch.zeros(50, 3)
    tokens = made(top=zeros, final=zeros[:, 0], top1=torch.full((50, 3), 0.5))
    assert len(with_thresholds(StrategySpec("confidence"), 20, tokens, info)) <= 2


def test_a_threshold_that_decides_nothing_is_refused(made: Callable[..., Any], info: ModelInfo) -> None:
    zeros = torch.zeros(50, 3)
    tokens = made(top=zeros, final=zeros[:, 0], top1=torch.ones(50, 3))
    with pytest.raises(ConfigError, match=r"confidence decides alike .*--strategy 'confidence:threshold=VALUE,VALUE'"):
        with_thresholds(StrategySpec("confidence"), 20, tokens, info)


def test_which_strategies_are_swept() -> None:
    assert asks_for_thresholds(StrategySpec("confidence"))
    assert asks_for_thresholds(StrategySpec("classifier", (("heads", "mine"),)))
    assert asks_for_thresholds(StrategySpec("saturation"))
    assert not asks_for_thresholds(StrategySpec("confidence", (("threshold", "0.5"),)))
    assert not any(
        asks_for_thresholds(StrategySpec(name)) for name in ("patience", "fixed", "oracle", "random", "full")
    )


def test_the_range_of_an_option() -> None:
    assert option_range("confidence", "threshold") == (0, 1)
    assert option_range("lte", "threshold") == (0, 2)  # of a type that may be None
    assert option_range("fixed", "layer") is None  # no upper end
    assert option_range("fixed", "threshold") is None
