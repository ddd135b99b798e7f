"""What an exit rule would have done on a trace."""

from __future__ import annotations

import pytest
import torch

from harness.training.traces.training_set import exit_places, replay_rows, threshold_keeping

POINTS, LAYERS = (2, 5), 10
SCORES = torch.tensor([[0.9, 0.9], [0.2, 0.8], [0.1, 0.3], [0.6, 0.1]])
RIGHT = torch.tensor([[True, True], [False, True], [False, False], [False, True]])


def test_the_first_exit_taken_counts_and_none_is_the_last_layer() -> None:
    leaves = torch.tensor([[True, True], [False, True], [False, False]])
    assert exit_places(leaves).tolist() == [0, 1, 2]


def test_depth_and_agreement_by_hand() -> None:
    (row,) = replay_rows(SCORES, RIGHT, POINTS, LAYERS, [0.5])
    # Tokens leave at 2 (right), 5 (right), 10 and 2 (wrong).
    assert row["exit_layer"] == pytest.approx((2 + 5 + 10 + 2) / 4)
    assert row["agreement"] == pytest.approx(3 / 4)
    (row,) = replay_rows(SCORES, RIGHT, POINTS, LAYERS, [2.0])
    assert (row["exit_layer"], row["agreement"]) == (10.0, 1.0)


def test_thresholds_are_quantiles_of_what_was_observed() -> None:
    rows = replay_rows(SCORES, RIGHT, POINTS, LAYERS)
    thresholds = [row["threshold"] for row in rows]
    assert thresholds == sorted(thresholds)
    assert SCORES.min() <= thresholds[0] <= thresholds[-1] <= SCORES.max()
    depths = [row["exit_layer"] for row in rows]
    assert depths == sorted(depths)  # stricter is never shallower


def test_the_loosest_threshold_that_keeps_the_agreement() -> None:
    kept = threshold_keeping(SCORES, RIGHT, POINTS, LAYERS, 1.0)
    assert kept is not None
    assert kept["agreement"] == 1.0
    assert 0.6 < kept["threshold"] <= 0.6 + 1e-3  # just above the token that would leave wrongly
    assert kept["exit_layer"] == pytest.approx((2 + 5 + 10 + 10) / 4)


def test_no_threshold_helps_where_the_surest_exit_is_wrong() -> None:
    scores, right = torch.tensor([[0.9, 0.1]]), torch.tensor([[False, False]])
    assert threshold_keeping(scores, right, POINTS, LAYERS, 1.0) is None
