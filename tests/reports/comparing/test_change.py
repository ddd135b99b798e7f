"""The change of one number: values by hand, symmetry, levels under swaps, as many false alarms as promised."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.appearance.visible_text import json_text
from harness.contracts import Metric
from harness.records.estimate import NoInterval
from reports.comparing.change import (
    Change,
    change,
    corrected,
    find_metric,
    level_of_both,
    levels_of,
)
from reports.comparing.compare import compare_runs
from reports.comparing.document import comparison_document
from reports.metrics.point import Units
from reports.metrics.vocabulary import all_metrics
from reports.statistics.intervals import MINIMUM_SAMPLES, Pair, half_width, ratio_interval
from reports.statistics.significance import smallest_p

Row = tuple[float, ...]


def units(*rows: Row) -> Units:
    return {frozenset([f"s{index}"]): row for index, row in enumerate(rows)}


def scores(values: list[float]) -> Units:
    return units(*((value, 1.0) for value in values))


EDIT, LATENCY, RATE, SPEEDUP = map(find_metric, ("edit_similarity", "latency_p50", "tokens_per_s", "speedup"))


def test_a_mean_difference_with_its_interval_and_p() -> None:
    a = [0.01 * k for k in range(MINIMUM_SAMPLES)]
    b = [0.01 * k + 0.02 + 0.01 * (-1) ** k for k in range(MINIMUM_SAMPLES)]
    found = change(EDIT, scores(a), scores(b))
    assert (found.a, found.b) == pytest.approx((0.245, 0.265))
    assert found.absolute == found.value == pytest.approx(0.02)
    half = 2.009575 * 0.01 / 7  # t of 49 degrees, and the standard error of ±0.01
    assert found.interval == pytest.approx((0.02 - half, 0.02 + half))
    assert found.p == smallest_p(MINIMUM_SAMPLES)  # no random swap comes near
    assert found.distinguishable


def test_few_scores_have_neither_interval_nor_test() -> None:
    """All point one way, and still 49 are no 50; of 200 of which seven differ, the next seven may do otherwise."""
    few = change(EDIT, scores([0.1] * 49), scores([0.2] * 49))
    assert (few.absolute, few.interval, few.p) == (pytest.approx(0.1), None, None)
    assert few.reason == "a score's interval needs 50 prompts, there are 49"
    assert (few.too_few, few.no_interval) == (True, NoInterval.FEW_SAMPLES)
    same = change(EDIT, scores([0.1] * 200), scores([0.1] * 193 + [0.2] * 7))
    assert (same.interval, same.p, same.no_interval) == (None, None, NoInterval.FEW_DIFFERING)
    assert same.estimate is not None
    assert same.estimate.text("{:.2f}").endswith("[too few]")
    assert same.reason == "a score's interval needs 8 prompts that differ, there are 7"
    assert change(EDIT, scores([0.1] * 200), scores([0.1] * 192 + [0.2] * 8)).interval is not None


def test_blocks_of_scores_are_counted_in_prompts() -> None:
    """Ten blocks of ten, all the same but for five prompts in each."""

    def blocks(better: float) -> Units:
        return {frozenset(f"s{10 * b + k}" for k in range(10)): (5.0 + better * (1 + b % 2), 10.0) for b in range(10)}

    found = change(EDIT, blocks(0.0), blocks(0.5), differing=50)
    assert (found.units, found.prompts) == (10, 100)
    assert found.absolute == pytest.approx(0.075)
    assert found.interval is not None
    assert change(EDIT, blocks(0.0), blocks(0.5), differing=5).interval is None


def test_relative_changes_have_the_intervals_of_their_linearised_logarithms() -> None:
    """Of totals, tokens the same, the tables' ratio of B over A; of a ratio of ratios eight terms, sized by seconds."""
    chance = np.random.default_rng(5)
    tokens, a, b = 10 + chance.integers(0, 90, 8), chance.gamma(5, 1, 8), chance.gamma(5, 1, 8)
    sides = (units(*zip(side, tokens, strict=True)) for side in (a, b))
    low, high = ratio_interval([Pair(after, before) for before, after in zip(a, b, strict=True)])
    found = change(find_metric("energy_j_per_token"), *sides)
    assert found.relative_interval == pytest.approx((low - 1, high - 1))

    rows = np.random.default_rng(6).gamma(8, 1, (2, 9, 4))
    found = change(SPEEDUP, units(*map(tuple, rows[0])), units(*map(tuple, rows[1])))
    shares = rows / rows.sum(1, keepdims=True)
    influence = (shares[1] - shares[0]) @ np.array([1, -1, -1, 1])
    factor = np.exp(half_width(influence, shares[:, :, ::2].mean((0, 2))))
    ratio = 1 + found.relative
    assert found.relative_interval == pytest.approx((ratio / factor - 1, ratio * factor - 1))


def test_levels_by_hand() -> None:
    a = [float(k) for k in range(1, 12)]
    median = change(LATENCY, units(*((s,) for s in a)), units(*((1.1 * s,) for s in a)))
    assert (median.a, median.b) == pytest.approx((6.0, 6.6))
    assert median.value == median.relative == pytest.approx(0.1)
    assert median.interval == pytest.approx((0.1, 0.1))
    ratios = change(SPEEDUP, units(*[(2.0, 1.0, 1.0, 1.0)] * 6), units(*[(3.0, 1.0, 2.0, 1.0)] * 6))
    assert (ratios.a, ratios.b, ratios.relative) == pytest.approx((2.0, 1.5, -0.25))
    totals = change(RATE, units((10, 1), (10, 9)), units((10, 1), (10, 9)))
    assert totals.a == pytest.approx(2.0)  # not the mean of 10 and 1.1
    assert (totals.interval, totals.reason) == (None, "an interval needs 5 prompts, there are 2")
    repeats = [(1.0, 1.1, 1.2)] * 11 + [(1.1,)]  # which make no prompts; one lacks some
    found = change(LATENCY, units(*repeats), units(*repeats))
    assert (found.units, found.a) == (12, pytest.approx(1.1))
    assert (found.value, found.interval, found.p, found.distinguishable) == (0.0, (0.0, 0.0), 1.0, False)


@pytest.mark.parametrize(("metric", "n"), [(EDIT, 50), (RATE, 12), (LATENCY, 12)])
def test_false_alarms_are_as_rare_as_promised(metric: Metric, n: int) -> None:
    """200 comparisons without a difference: at 5 % one expects 10; 20 would come up once in 500 tries."""
    chance = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        size = (2, n)
        rows = chance.gamma(4, 1, size) if metric is LATENCY else chance.normal(0.5, 0.1, size)
        a, b = (units(*(((float(x),) if metric is LATENCY else (float(x), 1.0)) for x in row)) for row in rows)
        found = change(metric, a, b)
        assert found.interval is not None
        alarms += found.distinguishable
    assert 1 <= alarms < 20


@pytest.mark.parametrize(("name", "needed"), [("latency_p50", 10), ("latency_p90", 50)])
def test_a_percentile_needs_five_prompts_beyond_it(name: str, needed: int) -> None:
    metric = find_metric(name)
    few = units(*((float(k),) for k in range(needed - 1)))
    assert change(metric, few, few).interval is None
    enough = units(*((float(k + 1),) for k in range(needed)))
    assert change(metric, enough, enough).interval == (0.0, 0.0)


def test_agreement_is_a_level() -> None:
    found = level_of_both(find_metric("agreement"), units((3.0, 4.0), (4.0, 4.0), (4.0, 4.0), (4.0, 4.0), (4.0, 4.0)))
    assert found.value == pytest.approx(19 / 20)
    assert (found.a, found.p) == (None, None)
    assert found.interval is not None
    assert found.interval[0] < 0.9
    assert 0.95 < found.interval[1] < 1


def test_holm_counts_what_was_tested() -> None:
    family = [Change(EDIT, p=0.02), Change(EDIT, p=0.01), Change(EDIT)]
    assert [one.p_holm for one in corrected(family)] == pytest.approx([0.02, 0.02, None])
    halved = change(RATE, units(*[(10.0, 1.0)] * 200), units(*[(10.0, 2.0)] * 200))  # no random swap comes near
    large = corrected([halved] * 120)
    assert all(one.distinguishable and not one.too_few for one in large)


def rows(metric: Metric, seed: int, n: int) -> list[Row]:
    """Rates have two numbers, ratios of rates four, percentiles one to three repeats."""
    chance = np.random.default_rng(seed)
    widths = chance.integers(1, 4, n) if metric.percentile else [4 if metric is SPEEDUP else 2] * n
    return [tuple(float(x) for x in chance.gamma(3, 1, width)) for width in widths]


def by_hand(metric: Metric, chosen: list[Row]) -> float:
    if metric.percentile is not None:
        return float(np.percentile(list(chain(*chosen)), metric.percentile))
    totals = [sum(column) for column in zip(*chosen, strict=True)]
    return totals[0] / totals[1] if len(totals) == 2 else totals[0] / totals[1] / (totals[2] / totals[3])


@pytest.mark.parametrize("metric", [RATE, SPEEDUP, LATENCY])
def test_pairs_that_were_swapped(metric: Metric) -> None:
    a, b = rows(metric, 1, 9), rows(metric, 2, 9)
    levels = levels_of(metric, a, b)
    assert levels.both == pytest.approx((by_hand(metric, a), by_hand(metric, b)))
    swaps = np.random.default_rng(4).integers(0, 2, (20, 9))
    sizes = levels.swapped(swaps.astype(float))
    for size, swapped in zip(sizes, swaps, strict=True):
        there = [(y, x) if swap else (x, y) for x, y, swap in zip(a, b, swapped, strict=True)]
        one, other = (by_hand(metric, [pair[side] for pair in there]) for side in (0, 1))
        assert size == pytest.approx(abs(one - other))


PERPLEXITY = {"name": "perplexity", "header": "ppl", "meaning": "made up", "of_sample": lambda _: 1.0, "kind": "work"}
numbers = st.one_of(st.sampled_from((math.inf, -math.inf, math.nan, 0.0, 1.0, 1e12, 1e-300)), st.floats(-1e6, 1e6))


@pytest.mark.parametrize("percentile", [None, 50])
@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=5, max_size=12))
def test_changes_of_anything_are_finite_or_missing(percentile: int | None, rows: list[Any]) -> None:
    metric = Metric(**PERPLEXITY, percentile=percentile)
    a, b = (units(*((one[side],) if percentile else (one[side], 1.0) for one in rows)) for side in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = corrected([change(metric, a, b)])
    told = [getattr(found, name) for name in Change.__dataclass_fields__ if name != "metric"]
    flat = [one for value in told for one in (value if isinstance(value, tuple) else (value,))]
    assert all(math.isfinite(one) for one in flat if isinstance(one, float))
    if found.absolute is None:
        assert found.p_holm is None
        assert found.reason


def test_a_metric_that_is_infinite_is_missing_and_counted(
    recorded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in's perplexity is infinite at a third of full depth's prompts, and at all of the fixed exit's."""

    def perplexity(sample: Any) -> float:
        return math.inf if sample.operating_point != "full" or int(sample.sample_id[1:]) % 3 == 0 else 2.0

    metric = Metric(**PERPLEXITY | {"of_sample": perplexity})
    for module in ("reports.summary.summarise", "reports.comparing.change"):
        monkeypatch.setattr(f"{module}.all_metrics", lambda scores=(): (*all_metrics(scores), metric))
    times = {"full": [1.0, 1.1] * 9, "fixed:layer=5": [0.5, 0.6] * 9}
    a, b = recorded("a", seconds=times), recorded("b", seconds=times)
    found = compare_runs(a, b)
    assert {point.of("perplexity").reason for point in found.points} == {"a number that is not finite"}
    assert "perplexity: 24 number(s) left out as not finite or beyond all reason." in a.summary.notes
    assert [row.metrics.get("perplexity") is None for row in a.summary.rows] == [False, True]
    json.loads(json_text(comparison_document(found, [])), parse_constant=pytest.fail)
