"""first − (first − last) · min(t / N, 1)^γ layers."""

from __future__ import annotations

from typing import Any

import pytest

from harness.contracts import ModelInfo
from harness.errors import OptionError
from strategies.schedule import Schedule


def exits(rule: Schedule, model: ModelInfo, view: Any, made: int) -> int:
    """The layer at which a token leaves after so many."""
    points = rule.exit_points(model)
    asked = {point: rule.should_exit(view(generated=[made], exit_layer=point)).item() for point in points}
    return next((point for point in points if asked[point]), model.num_layers)


@pytest.mark.parametrize(
    ("power", "made", "expected"),
    [
        # 26 − 12 · t / 12: 26, 25, 20, 18, 17, 14; and the first exit point from there on.
        (1.0, 0, 26), (1.0, 1, 26), (1.0, 6, 22), (1.0, 8, 18), (1.0, 9, 18), (1.0, 12, 14), (1.0, 50, 14),
        # 26 − 12 · (t / 12)²: 23 at 6, 19.25 at 9, 17.67 at 10.
        (2.0, 6, 26), (2.0, 9, 22), (2.0, 10, 18), (2.0, 12, 14),
        # 26 − 12 · √(t / 12): 20 at 3, 17.5 at 6
        (0.5, 3, 22), (0.5, 6, 18),
    ],
)  # fmt: skip
def test_depth_is_its_formula(view: Any, model: ModelInfo, power: float, made: int, expected: int) -> None:
    assert exits(Schedule(first=26, last=14, horizon=12, power=power), model, view, made) == expected


def test_depth_never_rises(view: Any, model: ModelInfo) -> None:
    for rule in (Schedule(), Schedule(first=28, last=4, power=0.3), Schedule(first=9, last=4, power=7)):
        depths = [exits(rule, model, view, made) for made in range(40)]
        assert depths == sorted(depths, reverse=True)
        assert len(set(depths)) > 1


def test_it_asks_only_where_it_comes(model: ModelInfo) -> None:
    assert Schedule(first=20, last=8).exit_points(model) == (8, 10, 12, 14, 18, 22)
    assert Schedule(first=28, last=22).exit_points(model) == (22, 26)
    assert Schedule(first=6, last=6).exit_points(model) == (6,)


def test_rows_have_their_own_positions(view: Any) -> None:
    seen = view(generated=[0, 6, 12], exit_layer=18)
    assert Schedule(first=22, last=14, horizon=8).should_exit(seen).tolist() == [False, True, True]


def test_a_schedule_that_does_not_fit_is_refused(model: ModelInfo) -> None:
    with pytest.raises(OptionError, match=r"schedule:first=8:last=10 rises.*Give last at most first"):
        Schedule(first=8, last=10).exit_points(model)
    with pytest.raises(OptionError, match=r"schedule:last=5 is not an exit point of model"):
        Schedule(first=8, last=5).exit_points(model)
