"""Rules that look back: the same best token at P exit points in a row, and cos(h, h before) ≥ τ."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from strategies.patience import Patience
from strategies.saturation import Saturation


@pytest.fixture
def chain(view: Any) -> Any:
    """``chain([tokens of all rows at the first exit point], …)``: the view at the last of them."""

    def make(*points: list[int]) -> Any:
        made = None
        for index, tokens in enumerate(points):
            made = view(logits=torch.eye(5)[tokens], previous=made, exit_layer=index + 1)
        return made

    return make


def test_a_run_of_the_same_token(chain: Any) -> None:
    for patience, points, expected in (
        (2, [3], False),  # the first exit point has nobody to agree with
        (2, [3, 3], True),
        (2, [3, 1, 1], True),
        (2, [1, 1, 3], False),
        (3, [3, 3], False),  # too few exit points for a run of three
        (3, [3, 1, 3, 3], False),  # an interruption starts the run again
        (3, [1, 3, 3, 3], True),
        (64, [3] * 9, False),
    ):
        answer = Patience(patience=patience).should_exit(chain(*([token] for token in points)))
        assert (answer.tolist(), answer.dtype) == ([expected], torch.bool), (patience, points)


def test_rows_have_their_own_runs(chain: Any) -> None:
    seen = chain([0, 1, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0])
    assert Patience(patience=3).should_exit(seen).tolist() == [True, False, False, True]
    assert Patience(patience=2).should_exit(seen).tolist() == [True, False, True, True]


def test_no_more_exit_points_are_looked_at_than_needed(view: Any) -> None:
    unseen = view()  # fails when its logits are asked for
    before = view(logits=[[0.0, 1.0]], previous=unseen)
    assert Patience(patience=2).should_exit(view(logits=[[0.0, 1.0]], previous=before)).tolist() == [True]


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


def test_low_precision_states_are_widened(view: Any) -> None:
    before = torch.ones(1, 4096, dtype=torch.bfloat16)
    here = before.clone()
    here[0, :41] = -1.0  # cosine 1 − 2·41/4096 = 0.97998
    seen = view(hidden_state=here, previous=view(hidden_state=before))
    assert math.isclose(1 - 82 / 4096, 0.97998, abs_tol=1e-5)
    assert Saturation(threshold=0.9799).should_exit(seen).tolist() == [True]
    assert Saturation(threshold=0.9801).should_exit(seen).tolist() == [False]
