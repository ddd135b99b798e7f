"""cos(h, h before) ≥ τ, never at the first exit point."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from strategies.saturation import Saturation


def test_the_cosine_reaches_the_threshold(view: Any) -> None:
    # 3-4-5 triangles: cosines 0.8, 0.6, −0.8 and 1, whatever the lengths.
    before = view(hidden_state=[[2.0, 0.0], [0.5, 0.0], [1.0, 0.0], [7.0, 7.0]])
    seen = view(hidden_state=[[4.0, 3.0], [30.0, 40.0], [-4.0, 3.0], [1.0, 1.0]], previous=before)

    def answer(threshold: float) -> list[bool]:
        return Saturation(threshold=threshold).should_exit(seen).tolist()

    assert answer(0.9) == [False, False, False, True]
    assert answer(0.79) == [True, False, False, True]
    assert answer(0.5) == [True, True, False, True]
    assert answer(-0.81) == [True, True, True, True]
    assert answer(-0.79) == [True, True, False, True]


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.95])
def test_never_at_the_first_exit_point(view: Any, threshold: float) -> None:
    seen = view(hidden_state=[[1.0, 2.0], [3.0, 4.0]])
    answer = Saturation(threshold=threshold).should_exit(seen)
    assert (answer.tolist(), answer.dtype) == ([False, False], torch.bool)


def test_only_the_exit_point_before_counts(view: Any) -> None:
    first = view(hidden_state=[[1.0, 0.0]])
    second = view(hidden_state=[[0.0, 1.0]], previous=first)
    assert Saturation(threshold=0.9).should_exit(view(hidden_state=[[5.0, 0.0]], previous=second)).tolist() == [False]
    assert Saturation(threshold=0.9).should_exit(view(hidden_state=[[0.0, 5.0]], previous=second)).tolist() == [True]


def test_a_threshold_above_one_never_exits(view: Any) -> None:
    state = [[1.0, 2.0], [1e-3, 0.0]]
    seen = view(hidden_state=state, previous=view(hidden_state=state))
    assert Saturation(threshold=1.001).should_exit(seen).tolist() == [False, False]


def test_low_precision_states_are_widened(view: Any) -> None:
    before = torch.ones(1, 4096, dtype=torch.bfloat16)
    here = before.clone()
    here[0, :41] = -1.0  # cosine 1 − 2·41/4096 = 0.97998
    seen = view(hidden_state=here, previous=view(hidden_state=before))
    assert math.isclose(1 - 82 / 4096, 0.97998, abs_tol=1e-5)
    assert Saturation(threshold=0.9799).should_exit(seen).tolist() == [True]
    assert Saturation(threshold=0.9801).should_exit(seen).tolist() == [False]
