"""A rule that sees the whole vocabulary first, and then the k likeliest tokens of that check."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from harness.contracts import Batch, ModelInfo
from harness.errors import OptionError
from strategies.shortlist import Shortlist

FIRST = [[5.0, 4.0, 0.0, -1.0], [0.0, 1.0, 4.0, 5.0]]  # the two best: tokens 0 and 1; 3 and 2
THEN = [[1.0, 3.0, 9.0, 0.0], [9.0, 9.0, 2.0, 2.0]]  # best of all: 2; 0 and 1


def chain(view: Any, *logits: list[list[float]]) -> Any:
    made = None
    for number, values in enumerate(logits):
        made = view(logits=values, previous=made, exit_layer=4 + 2 * number)
    return made


def answer(rule: Shortlist, model: ModelInfo, seen: Any) -> list[bool]:
    decided: list[bool] = rule.start(model, Batch((0, 0), "cpu")).should_exit(seen).tolist()
    return decided


def test_the_first_check_is_of_the_whole_vocabulary(view: Any, model: ModelInfo) -> None:
    top = math.exp(5) / (math.exp(5) + math.exp(4) + 1 + math.exp(-1))
    seen = chain(view, FIRST)
    assert answer(Shortlist(threshold=top - 1e-4, size=2), model, seen) == [True, False]
    assert answer(Shortlist(threshold=top + 1e-4, size=2), model, seen) == [False, False]
    assert seen.given is None
    assert seen.read_rows == []


def test_later_checks_are_of_the_kept_tokens(view: Any, model: ModelInfo) -> None:
    """Of tokens 0 and 1 the logits are 1 and 3: e³ / (e + e³); of 3 and 2 they are alike: one half."""
    top = math.exp(3) / (math.exp(1) + math.exp(3))
    for threshold, expected in ((top - 1e-4, [True, False]), (top + 1e-4, [False, False]), (0.4, [True, True])):
        seen = chain(view, FIRST, THEN)
        assert answer(Shortlist(threshold=threshold, size=2), model, seen) == expected
        assert seen.read_rows == [2]  # once, two rows of the head for each
        if any(expected):
            tokens, probabilities = seen.given
            assert tokens[0] == 1
            assert probabilities.tolist() == pytest.approx([top, 0.5])
    seen = chain(view, FIRST, THEN)
    answer(Shortlist(threshold=0.4, size=2, token="full"), model, seen)
    assert seen.given is None  # the engine runs the whole head


@pytest.mark.parametrize(
    ("rule", "threshold", "expected"),
    [
        # H of (e, e³)/(e + e³) over log 2 is .5272: p = .8808; of one half it is 1
        ("entropy", 0.53, [True, False]),
        ("entropy", 0.52, [False, False]),
        ("margin", 0.76, [True, False]),  # .8808 − .1192 = .7616
        ("margin", 0.77, [False, False]),
        ("patience", None, [False, False]),
    ],
)
def test_other_rules_see_the_kept_tokens_too(
    view: Any, model: ModelInfo, rule: str, threshold: float | None, expected: list[bool]
) -> None:
    assert answer(Shortlist(rule, threshold, size=2), model, chain(view, FIRST, THEN)) == expected


def test_patience_counts_the_best_kept_tokens(view: Any, model: ModelInfo) -> None:
    """At the three exits row 0 says 0, 1, 1 of the kept ones (2 would be best of all), row 1 says 3, 2 and 3."""
    third = [[0.0, 1.0, 9.0, 9.0], [9.0, 9.0, 1.0, 2.0]]
    second = [[1.0, 3.0, 9.0, 0.0], [9.0, 9.0, 3.0, 2.0]]
    seen = chain(view, FIRST, second, third)
    assert [seen.read_rows, seen.previous.read_rows] == [[], []]
    assert answer(Shortlist("patience", size=2), model, seen) == [False, False]  # three in a row are wanted
    fourth = [[0.0, 1.0, 9.0, 9.0], [0.0, 0.0, 5.0, 0.0]]
    assert answer(Shortlist("patience", size=2), model, chain(view, FIRST, second, third, fourth)) == [True, False]


def test_the_option_is_the_other_strategy_s(model: ModelInfo) -> None:
    assert Shortlist("random").exit_points(model) == model.exit_points
    with pytest.raises(OptionError, match="strategy 'patience' has no option 'threshold'"):
        Shortlist("patience", 0.5).exit_points(model)
    for rule in ("oracle", "layerskip", "shortlist"):
        with pytest.raises(OptionError, match=f"shortlist:rule={rule} cannot be asked of fewer tokens"):
            Shortlist(rule).exit_points(model)


def test_a_score_that_is_no_number_is_one_for_the_engine(view: Any, model: ModelInfo) -> None:
    """What is compared goes through ``once``, where the engine sees that it is NaN."""
    seen = chain(view, FIRST, [[math.nan] * 4] * 2)
    assert answer(Shortlist(threshold=0.4, size=2), model, seen) == [False, False]
    assert any(torch.isnan(value).any() for value in seen._derived.values() if value.is_floating_point())
