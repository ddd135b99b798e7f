"""The same best token at P exit points in a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from strategies.patience import Patience


@pytest.fixture
def chain(view: Any) -> Any:
    """``chain([tokens of all rows at the first exit point], …)``: the view at the last of them."""

    def make(*points: list[int]) -> Any:
        made = None
        for index, tokens in enumerate(points):
            made = view(logits=torch.eye(5)[tokens], previous=made, exit_layer=index + 1)
        return made

    return make


@pytest.mark.parametrize(
    ("patience", "points", "expected"),
    [
        (2, [3], False),  # the first exit point has nobody to agree with
        (2, [3, 3], True),
        (2, [3, 1], False),
        (2, [3, 1, 1], True),
        (2, [1, 1, 3], False),
        (3, [3, 3], False),  # too few exit points for a run of three
        (3, [3, 3, 3], True),
        (3, [1, 3, 3], False),
        (3, [3, 1, 3], False),  # an interruption starts the run again
        (3, [3, 1, 3, 3], False),
        (3, [1, 3, 3, 3], True),
        (4, [3, 3, 3, 3], True),
        (4, [1, 3, 3, 3], False),
        (64, [3] * 9, False),
    ],
)
def test_a_run_of_the_same_token(chain: Any, patience: int, points: list[int], expected: bool) -> None:
    answer = Patience(patience=patience).should_exit(chain(*([token] for token in points)))
    assert (answer.tolist(), answer.dtype) == ([expected], torch.bool)


def test_rows_have_their_own_runs(chain: Any) -> None:
    seen = chain([0, 1, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0])
    assert Patience(patience=3).should_exit(seen).tolist() == [True, False, False, True]
    assert Patience(patience=2).should_exit(seen).tolist() == [True, False, True, True]


def test_no_more_exit_points_are_looked_at_than_needed(view: Any) -> None:
    unseen = view()  # fails when its logits are asked for
    before = view(logits=[[0.0, 1.0]], previous=unseen)
    assert Patience(patience=2).should_exit(view(logits=[[0.0, 1.0]], previous=before)).tolist() == [True]
