"""p₁ − p₂ ≥ τ(t), τ(t) = clip(0.9·τ + 0.1·exp(−T·t/N), 0, 1)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from strategies.margin import Margin


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.45, [True, False]), (0.55, [False, False]), (0.04, [True, True])]
)
def test_the_lead_reaches_the_threshold(view: Any, probabilities: Any, threshold: float, expected: list[bool]) -> None:
    seen = view(logits=probabilities([0.1, 0.7, 0.2], [0.35, 0.25, 0.4]))
    assert Margin(threshold=threshold).should_exit(seen).tolist() == expected


def test_edges(view: Any) -> None:
    tied, certain = [[1.0, 1.0, 0.0]], [[400.0, 0.0, 0.0]]
    assert Margin(threshold=0).should_exit(view(logits=tied)).tolist() == [True]
    assert Margin(threshold=0.001).should_exit(view(logits=tied)).tolist() == [False]
    assert Margin(threshold=1).should_exit(view(logits=certain)).tolist() == [True]


@pytest.mark.parametrize("generated", [0, 1, 4, 15, 200])
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


def test_low_precision_logits_are_widened(view: Any) -> None:
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    logits[0, :2] = torch.tensor([8.0, 6.0])
    lead = (math.exp(8) - math.exp(6)) / (math.exp(8) + math.exp(6) + 998)
    assert Margin(threshold=lead - 1e-4).should_exit(view(logits=logits)).tolist() == [True]
    assert Margin(threshold=lead + 1e-4).should_exit(view(logits=logits)).tolist() == [False]
