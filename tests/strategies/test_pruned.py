"""The top layers are dropped."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from harness.contracts import ModelInfo
from harness.errors import OptionError
from strategies.pruned import Pruned


@pytest.mark.parametrize(("layers", "kept"), [(2, 26), (24, 4), (None, 26)])
def test_what_is_kept_is_the_rest(view: Any, model: ModelInfo, layers: int | None, kept: int) -> None:
    rule = Pruned(layers=layers)
    assert rule.exit_points(model) == (kept,)
    assert rule.should_exit(view(rows=[0, 3])).tolist() == [True, True]


@pytest.mark.parametrize("layers", [1, 28, 40])
def test_what_leaves_no_exit_point_is_refused(model: ModelInfo, layers: int) -> None:
    reason = rf"pruned:layers={layers} keeps {28 - layers} of 28 layers.*Drop one of 2, 6, 10, 14.*--exit-points all"
    with pytest.raises(OptionError, match=reason):
        Pruned(layers=layers).exit_points(model)


def test_a_model_without_exit_points_stays_whole(model: ModelInfo) -> None:
    assert Pruned().exit_points(dataclasses.replace(model, exit_points=())) == ()
