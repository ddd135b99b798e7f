"""max p ≥ τ."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from strategies.confidence import Confidence


@pytest.mark.parametrize(("threshold", "expected"), [(0.6, [True, False]), (0.8, [False, False]), (0.3, [True, True])])
def test_the_best_probability_reaches_the_threshold(
    view: Any, probabilities: Any, threshold: float, expected: list[bool]
) -> None:
    seen = view(logits=probabilities([0.1, 0.7, 0.2], [0.35, 0.25, 0.4]))
    assert Confidence(threshold=threshold).should_exit(seen).tolist() == expected


def test_the_threshold_itself_exits(view: Any) -> None:
    # Two equal logits: p is exactly one half.
    seen = view(logits=[[2.0, 2.0, -torch.inf]])
    assert Confidence(threshold=0.5).should_exit(seen).tolist() == [True]
    assert Confidence(threshold=0.5001).should_exit(seen).tolist() == [False]


def test_edges(view: Any, probabilities: Any) -> None:
    seen = view(logits=torch.cat([probabilities([0.3, 0.4, 0.3]), torch.tensor([[500.0, 0.0, -500.0]])]))
    assert Confidence(threshold=0).should_exit(seen).tolist() == [True, True]
    assert Confidence(threshold=1).should_exit(seen).tolist() == [False, True]  # exactly one, without overflow


def test_low_precision_logits_are_widened(view: Any) -> None:
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    logits[0, 0] = 7.0  # p = e⁷ / (e⁷ + 999) = 0.5233
    assert Confidence(threshold=0.523).should_exit(view(logits=logits)).tolist() == [True]
    assert Confidence(threshold=0.524).should_exit(view(logits=logits)).tolist() == [False]
