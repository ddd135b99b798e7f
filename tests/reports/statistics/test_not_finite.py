"""What is not finite is missing: no statistic is made of it, no test finds it, and no file holds it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.appearance.visible_text import json_text
from harness.records.estimate import NoInterval
from reports.statistics import intervals
from reports.statistics.intervals import Pair
from reports.statistics.risk_control import certified_by_tests
from reports.statistics.significance import deal_p, holm, ratio_p, sign_flip_p, swap_p

NOT_FINITE = (math.inf, -math.inf, math.nan)
numbers = st.one_of(st.sampled_from((*NOT_FINITE, 0.0, 1.0, -1.0, 1e12, 1e-300)), st.floats(-1e6, 1e6))


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def finite(value: object) -> bool:
    """Whether a result holds no NaN and no infinity."""
    found = value if isinstance(value, tuple | list) else [value]
    return all(not isinstance(one, float) or math.isfinite(one) for one in found)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=5, max_size=20))
def test_statistics_of_anything_are_finite_or_missing(rows: list[tuple[float, float]]) -> None:
    first = [a for a, _ in rows]
    pairs = [Pair(a, b) for a, b in rows]
    there = all(map(math.isfinite, (number for row in rows for number in row)))
    for found in (
        *(make(first) for make in (intervals.mean, intervals.median, sign_flip_p)),
        *(make([[one] for one in first]) for make in (intervals.mean_interval, intervals.score_interval)),
        *(make(pairs) for make in (intervals.paired_ratio, intervals.ratio_interval, intervals.share_bounds, ratio_p)),
    ):
        assert finite(found)
    assert there or isinstance(intervals.ratio_interval(pairs), NoInterval)
    assert there or ratio_p(pairs) is None


@given(st.lists(st.one_of(st.none(), st.floats(0, 1), st.just(math.nan)), max_size=8))
def test_holm_corrects_what_was_tested(p_values: list[float | None]) -> None:
    found = holm(p_values)
    known = [p if p is not None and math.isfinite(p) else None for p in p_values]
    assert found == holm(known)
    assert all((p is None) == (q is None) and (p is None or q >= p) for p, q in zip(known, found, strict=True))


def test_a_difference_that_is_no_number_has_no_p_value() -> None:
    """It was 0: no rearrangement is as extreme as NaN. One that has no number itself counts as extreme."""
    for at_least in (math.nan, math.inf):
        assert swap_p(lambda rows: rows.sum(1), at_least, 8) is None
        assert deal_p(lambda rows: rows.sum(1), at_least, 8, 8) is None
    assert swap_p(lambda rows: np.full(len(rows), np.nan), 1.0, 8) == 1.0


def test_a_setting_whose_risk_is_no_number_is_not_certified() -> None:
    assert len(certified_by_tests(np.zeros((3, 4)), 0.05, 0.05, lambda *_: math.nan)) == 1


def test_json_has_null_where_there_is_no_number() -> None:
    assert json.loads(json_text({"a": [1.5, math.nan, (math.inf,)], "b": {"c": -math.inf}})) == {
        "a": [1.5, None, [None]],
        "b": {"c": None},
    }
