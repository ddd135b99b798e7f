"""Rules that read one exit's distribution: max p ≥ τ, p₁ − p₂ ≥ τ(t), and H(p) / log V < τ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from strategies.confidence import Confidence
from strategies.entropy import Entropy
from strategies.margin import Margin


def test_the_best_probability_or_its_lead_reaches_the_threshold(view: Any, probabilities: Any) -> None:
    seen = view(logits=probabilities([0.1, 0.7, 0.2], [0.35, 0.25, 0.4]))
    for threshold, expected in ((0.6, [True, False]), (0.8, [False, False]), (0.3, [True, True])):
        assert Confidence(threshold=threshold).should_exit(seen).tolist() == expected
    for threshold, expected in ((0.45, [True, False]), (0.55, [False, False]), (0.04, [True, True])):
        assert Margin(threshold=threshold).should_exit(seen).tolist() == expected


def test_the_threshold_itself_exits(view: Any) -> None:
    # Two equal logits: p is exactly one half.
    seen = view(logits=[[2.0, 2.0, -torch.inf]])
    assert Confidence(threshold=0.5).should_exit(seen).tolist() == [True]
    assert Confidence(threshold=0.5001).should_exit(seen).tolist() == [False]


def test_edges_of_confidence(view: Any, probabilities: Any) -> None:
    seen = view(logits=torch.cat([probabilities([0.3, 0.4, 0.3]), torch.tensor([[500.0, 0.0, -500.0]])]))
    assert Confidence(threshold=0).should_exit(seen).tolist() == [True, True]
    assert Confidence(threshold=1).should_exit(seen).tolist() == [False, True]  # exactly one, without overflow


def test_confidence_widens_low_precision(view: Any) -> None:
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    logits[0, 0] = 7.0  # p = e⁷ / (e⁷ + 999) = 0.5233
    assert Confidence(threshold=0.523).should_exit(view(logits=logits)).tolist() == [True]
    assert Confidence(threshold=0.524).should_exit(view(logits=logits)).tolist() == [False]


def test_edges_of_margin(view: Any) -> None:
    tied, certain = [[1.0, 1.0, 0.0]], [[400.0, 0.0, 0.0]]
    assert Margin(threshold=0).should_exit(view(logits=tied)).tolist() == [True]
    assert Margin(threshold=0.001).should_exit(view(logits=tied)).tolist() == [False]
    assert Margin(threshold=1).should_exit(view(logits=certain)).tolist() == [True]


@pytest.mark.parametrize("generated", [0, 4, 200])
def test_the_threshold_decays_with_the_tokens_generated(view: Any, probabilities: Any, generated: int) -> None:
    rule = Margin(threshold=0.6, decay=4.0, horizon=15)
    tau = 0.9 * 0.6 + 0.1 * math.exp(-4.0 * generated / 15)
    for offset, expected in ((0.004, True), (-0.004, False)):
        lead = tau + offset
        second = (1 - lead) / 2.5
        logits = probabilities([second, lead + second, 1 - lead - 2 * second])
        assert rule.should_exit(view(logits=logits, generated=[generated])).tolist() == [expected]


def test_rows_decay_by_their_own_tokens(view: Any, probabilities: Any) -> None:
    rule = Margin(threshold=0.5, decay=4.0, horizon=10)  # 0.55 at the start, 0.45 in the end
    logits = probabilities(*[[0.7, 0.2, 0.1]] * 2)
    assert rule.should_exit(view(logits=logits, generated=[0, 20])).tolist() == [False, True]


def test_margin_widens_low_precision(view: Any) -> None:
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    logits[0, :2] = torch.tensor([8.0, 6.0])
    lead = (math.exp(8) - math.exp(6)) / (math.exp(8) + math.exp(6) + 998)
    assert Margin(threshold=lead - 1e-4).should_exit(view(logits=logits)).tolist() == [True]
    assert Margin(threshold=lead + 1e-4).should_exit(view(logits=logits)).tolist() == [False]


def relative(distribution: Sequence[float]) -> float:
    """The definition, term by term."""
    return -sum(p * math.log(p) for p in distribution if p > 0) / math.log(len(distribution))


@pytest.mark.parametrize("distribution", [[0.1, 0.7, 0.2], [0.5, 0.25, 0.125, 0.125]])
@pytest.mark.parametrize("shift", [0.0, -80.0])
def test_entropy_is_its_definition(view: Any, probabilities: Any, distribution: list[float], shift: float) -> None:
    value = relative(distribution)
    seen = view(logits=probabilities(distribution, shift=shift))
    assert Entropy(threshold=value + 1e-4).should_exit(seen).tolist() == [True]
    assert Entropy(threshold=value - 1e-4).should_exit(seen).tolist() == [False]


def test_edges_of_entropy(view: Any) -> None:
    certain, even = [[300.0, 0.0, 0.0, 0.0]], [[2.0, 2.0, 2.0, 2.0]]
    assert Entropy(threshold=0).should_exit(view(logits=certain)).tolist() == [False]  # strictly below
    assert Entropy(threshold=1e-6).should_exit(view(logits=certain)).tolist() == [True]
    assert Entropy(threshold=0.9999).should_exit(view(logits=even)).tolist() == [False]
    assert Entropy(threshold=1).should_exit(view(logits=[[2.0, 2.0, 2.0, 1.0]])).tolist() == [True]


def test_entropy_widens_low_precision(view: Any) -> None:
    logits = torch.zeros(1, 40_000, dtype=torch.bfloat16)
    logits[0, 0] = 10.0
    top = math.exp(10) / (math.exp(10) + 39_999)
    rest = (1 - top) / 39_999
    value = -(top * math.log(top) + 39_999 * rest * math.log(rest)) / math.log(40_000)
    assert Entropy(threshold=value + 1e-3).should_exit(view(logits=logits)).tolist() == [True]
    assert Entropy(threshold=value - 1e-3).should_exit(view(logits=logits)).tolist() == [False]
