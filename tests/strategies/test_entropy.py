"""H(p) / log V < τ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from strategies.entropy import Entropy


def relative(distribution: Sequence[float]) -> float:
    """The definition, term by term."""
    return -sum(p * math.log(p) for p in distribution if p > 0) / math.log(len(distribution))


@pytest.mark.parametrize(
    "distribution", [[0.1, 0.7, 0.2], [0.35, 0.25, 0.4], [0.9, 0.05, 0.05], [0.5, 0.25, 0.125, 0.125]]
)
@pytest.mark.parametrize("shift", [0.0, 80.0, -80.0])
def test_entropy_is_its_definition(view: Any, probabilities: Any, distribution: list[float], shift: float) -> None:
    value = relative(distribution)
    seen = view(logits=probabilities(distribution, shift=shift))
    assert Entropy(threshold=value + 1e-4).should_exit(seen).tolist() == [True]
    assert Entropy(threshold=value - 1e-4).should_exit(seen).tolist() == [False]


def test_edges(view: Any) -> None:
    certain, even = [[300.0, 0.0, 0.0, 0.0]], [[2.0, 2.0, 2.0, 2.0]]
    assert Entropy(threshold=0).should_exit(view(logits=certain)).tolist() == [False]  # strictly below
    assert Entropy(threshold=1e-6).should_exit(view(logits=certain)).tolist() == [True]
    assert Entropy(threshold=0.9999).should_exit(view(logits=even)).tolist() == [False]
    assert Entropy(threshold=1).should_exit(view(logits=[[2.0, 2.0, 2.0, 1.0]])).tolist() == [True]


def test_one_threshold_means_the_same_for_every_vocabulary(view: Any) -> None:
    for size in (2, 50, 50_000):
        assert Entropy(threshold=0.99).should_exit(view(logits=torch.zeros(1, size))).tolist() == [False]


def test_low_precision_logits_are_widened(view: Any) -> None:
    logits = torch.zeros(1, 40_000, dtype=torch.bfloat16)
    logits[0, 0] = 10.0
    top = math.exp(10) / (math.exp(10) + 39_999)
    rest = (1 - top) / 39_999
    value = -(top * math.log(top) + 39_999 * rest * math.log(rest)) / math.log(40_000)
    assert Entropy(threshold=value + 1e-3).should_exit(view(logits=logits)).tolist() == [True]
    assert Entropy(threshold=value - 1e-3).should_exit(view(logits=logits)).tolist() == [False]
