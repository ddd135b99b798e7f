"""The change of one number: values by hand, symmetry, levels under counts, as many false alarms as promised."""

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
from harness.errors import UnknownNameError
from harness.records.estimate import NoInterval
from reports.comparing.change import (
    Change,
    Levels,
    change,
    compared_metrics,
    corrected,
    find_metric,
    level_of_both,
    levels_of,
    needed_units,
)
from reports.comparing.compare import Wanted, compare_runs
from reports.comparing.document import comparison_document
from reports.metrics.point import Units
from reports.metrics.vocabulary import all_metrics
from reports.statistics.intervals import MINIMUM_SAMPLES, Pair, half_width, ratio_interval
from reports.statistics.significance import smallest_p


def units(*rows: tuple[float, ...]) -> Units:
    return {frozenset([f"s{index}"]): row for index, row in enumerate(rows)}


def scores(values: list[float]) -> Units:
    return units(*((value, 1.0) for value in values))


EDIT, LATENCY, RATE, SPEEDUP = map(find_metric, ("edit_similarity", "latency_p50", "tokens_per_s", "speedup"))


def test_a_mean_difference_with_its_interval_and_p() -> None:
    a = [0.01 * k for k in range(MINIMUM_SAMPLES)]
    b = [0.01 * k + 0.02 + 0.01 * (-1) ** k for k in range(MINIMUM_SAMPLES)]
    found = change(EDIT, scores(a), scores(b), paired=True)
    assert found.a == pytest.approx(0.245)
    assert found.b == pytest.approx(0.265)
    assert found.absolute == found.value == pytest.approx(0.02)
    half = 2.009575 * 0.01 / 7  # t of 49 degrees, and the standard error of ±0.01
    assert found.interval == pytest.approx((0.02 - half, 0.02 + half))
    assert found.p == smallest_p(MINIMUM_SAMPLES)  # no random swap comes near
    assert found.distinguishable


def test_few_scores_have_neither_interval_nor_test() -> None:
    """All point one way, and still 49 are no 50; of 200 of which seven differ, the next seven may do otherwise."""
    few = change(EDIT, scores([0.1] * 49), scores([0.2] * 49), paired=True)
    assert (few.absolute, few.interval, few.p) == (pytest.approx(0.1), None, None)
    assert few.reason == "a score's interval needs 50 prompts, there are 49"
    assert (few.too_few, few.no_interval) == (True, NoInterval.FEW_SAMPLES)
    same = change(EDIT, scores([0.1] * 200), scores([0.1] * 193 + [0.2] * 7), paired=True)
    assert (same.interval, same.p, same.no_interval) == (None, None, NoInterval.FEW_DIFFERING)
    assert same.estimate is not None
    assert same.estimate.text("{:.2f}").endswith("[too few]")
    assert same.reason == "a score's interval needs 8 prompts that differ, there are 7"
    assert change(EDIT, scores([0.1] * 200), scores([0.1] * 192 + [0.2] * 8), paired=True).interval is not None
    unpaired = change(EDIT, scores([0.1] * 60), scores([0.2] * 49), paired=False)
    assert (unpaired.interval, unpaired.reason) == (None, few.reason)


def test_blocks_of_scores_are_counted_in_prompts() -> None:
    """Ten blocks of ten, all the same but for five prompts in each."""

    def blocks(better: float) -> Units:
        return {frozenset(f"s{10 * b + k}" for k in range(10)): (5.0 + better * (1 + b % 2), 10.0) for b in range(10)}

    found = change(EDIT, blocks(0.0), blocks(0.5), paired=True, differing=50)
    assert (found.units, found.prompts) == (10, 100)
    assert found.absolute == pytest.approx(0.075)
    assert found.interval is not None
    assert change(EDIT, blocks(0.0), blocks(0.5), paired=True, differing=5).interval is None


def test_a_relative_change_of_totals_has_the_interval_of_a_paired_ratio() -> None:
    """Seconds and tokens of eight blocks, tokens the same: the tables' ratio of B over A."""
    chance = np.random.default_rng(5)
    tokens, a, b = 10 + chance.integers(0, 90, 8), chance.gamma(5, 1, 8), chance.gamma(5, 1, 8)
    found = change(
        find_metric("energy_j_per_token"), units(*zip(a, tokens, strict=True)), units(*zip(b, tokens, strict=True)),
        paired=True,
    )  # fmt: skip
    low, high = ratio_interval([Pair(after, before) for before, after in zip(a, b, strict=True)])
    assert found.relative_interval == pytest.approx((low - 1, high - 1))


def test_a_median_ratio() -> None:
    a = [float(k) for k in range(1, 12)]
    found = change(LATENCY, units(*((s,) for s in a)), units(*((1.1 * s,) for s in a)), paired=True)
    assert (found.a, found.b) == pytest.approx((6.0, 6.6))
    assert found.value == found.relative == pytest.approx(0.1)
    assert found.absolute == pytest.approx(0.6)
    assert found.interval == pytest.approx((0.1, 0.1))


def test_a_ratio_of_ratios() -> None:
    """Full depth 2 s over 1 s in A, 3 s over 2 s in B: speed-ups 2 and 1.5."""
    a, b = units(*[(2.0, 1.0, 1.0, 1.0)] * 6), units(*[(3.0, 1.0, 2.0, 1.0)] * 6)
    found = change(SPEEDUP, a, b, paired=True)
    assert (found.a, found.b, found.relative) == pytest.approx((2.0, 1.5, -0.25))


def test_a_change_of_speed_up_has_the_interval_of_its_linearised_logarithm() -> None:
    """Eight terms: seconds and tokens, full depth's and the exit's, of A and of B; blocks are as large as seconds."""
    rows = np.random.default_rng(6).gamma(8, 1, (2, 9, 4))
    found = change(SPEEDUP, units(*map(tuple, rows[0])), units(*map(tuple, rows[1])), paired=True)
    shares = rows / rows.sum(1, keepdims=True)
    influence = (shares[1] - shares[0]) @ np.array([1, -1, -1, 1])
    factor = np.exp(half_width((influence, shares[:, :, ::2].mean((0, 2)))))
    ratio = 1 + found.relative
    assert found.relative_interval == pytest.approx((ratio / factor - 1, ratio * factor - 1))


def test_rates_are_totals_over_totals() -> None:
    rate = find_metric("tokens_per_s")
    found = change(rate, units((10, 1), (10, 9)), units((10, 1), (10, 9)), paired=True)
    assert found.a == pytest.approx(2.0)  # not the mean of 10 and 1.1
    assert found.interval is None
    assert found.reason == "an interval needs 5 prompts, there are 2"


def test_nothing_changed() -> None:
    rows = [(float(k),) for k in range(1, 30)]
    found = change(LATENCY, units(*rows), units(*rows), paired=True)
    assert (found.value, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)
    assert not found.distinguishable


def test_forth_and_back_cancel() -> None:
    chance = np.random.default_rng(3)
    one, other = (units(*((float(s),) for s in chance.gamma(5, 1, 40))) for _ in range(2))
    there, back = change(LATENCY, one, other, paired=True), change(LATENCY, other, one, paired=True)
    assert there.relative is not None
    assert back.relative is not None
    assert (1 + there.relative) * (1 + back.relative) == pytest.approx(1)
    assert there.p == back.p


def test_pairs_see_what_unpaired_prompts_hide() -> None:
    chance = np.random.default_rng(0)
    a = chance.gamma(2, 1, 60)
    before, after = units(*((float(s),) for s in a)), units(*((float(1.05 * s),) for s in a))
    paired, unpaired = (change(LATENCY, before, after, paired=how) for how in (True, False))
    assert paired.distinguishable
    assert not unpaired.distinguishable
    assert paired.relative == unpaired.relative


def test_unpaired_sees_what_is_clear() -> None:
    chance = np.random.default_rng(1)
    found = change(
        EDIT, scores(list(chance.normal(0.3, 0.05, 60))), scores(list(chance.normal(0.6, 0.05, 50))), paired=False
    )
    assert found.distinguishable
    assert found.interval is not None
    assert found.interval[0] < 0.3 < found.interval[1]


@pytest.mark.parametrize(
    ("metric", "paired", "n"), [(EDIT, True, 50), (RATE, True, 12), (LATENCY, True, 12), (RATE, False, 12)]
)
def test_false_alarms_are_as_rare_as_promised(metric: Metric, paired: bool, n: int) -> None:
    """200 comparisons without a difference: at 5 % one expects 10; 20 would come up once in 500 tries."""
    chance = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        size = (2, n)
        rows = chance.gamma(4, 1, size) if metric is LATENCY else chance.normal(0.5, 0.1, size)
        a, b = (units(*(((float(x),) if metric is LATENCY else (float(x), 1.0)) for x in row)) for row in rows)
        found = change(metric, a, b, paired=paired)
        assert found.interval is not None
        alarms += found.distinguishable
    assert 1 <= alarms < 20


@pytest.mark.parametrize(("name", "needed"), [("latency_p50", 10), ("latency_p90", 50), ("latency_p99", 500)])
def test_a_percentile_needs_five_prompts_beyond_it(name: str, needed: int) -> None:
    metric = find_metric(name)
    assert needed_units(metric) == needed
    few = [(float(k),) for k in range(needed - 1)]
    assert change(metric, units(*few), units(*few), paired=True).interval is None
    enough = [(float(k + 1),) for k in range(needed)]
    assert change(metric, units(*enough), units(*enough), paired=True).interval == (0.0, 0.0)


def test_repeats_do_not_make_prompts() -> None:
    """Ten repeats of six prompts are six units, and prompts may lack a repeat."""
    rows = [(1.0, 1.1, 1.2)] * 11 + [(1.1,)]
    found = change(LATENCY, units(*rows), units(*rows), paired=True)
    assert found.units == 12
    assert found.a == pytest.approx(1.1)


def test_agreement_is_a_level() -> None:
    found = level_of_both(find_metric("agreement"), units((3.0, 4.0), (4.0, 4.0), (4.0, 4.0), (4.0, 4.0), (4.0, 4.0)))
    assert found.value == pytest.approx(19 / 20)
    assert found.a is None
    assert found.interval is not None
    assert found.interval[0] < 0.9
    assert 0.95 < found.interval[1] < 1
    assert found.p is None


def test_holm_counts_what_was_tested() -> None:
    family = [Change(EDIT, p=0.02), Change(EDIT, p=0.01), Change(EDIT)]
    assert [one.p_holm for one in corrected(family)] == pytest.approx([0.02, 0.02, None])


def test_a_large_family_can_still_show_a_change() -> None:
    """200 prompts, throughput exactly halved, at 120 operating points: no random swap comes near."""
    rate = find_metric("tokens_per_s")
    halved = change(rate, units(*[(10.0, 1.0)] * 200), units(*[(10.0, 2.0)] * 200), paired=True)
    assert halved.relative == pytest.approx(-0.5)
    family = corrected([halved] * 120)
    assert all(one.distinguishable for one in family)
    assert not family[0].too_few
    assert not family[0].too_many
    hopeless = corrected([halved] * 600)[0]  # 600 / 10,000 is above 5 %, however many prompts there are
    assert not hopeless.distinguishable
    assert hopeless.too_many
    assert not hopeless.too_few


def test_unpaired_blocks_can_be_too_few() -> None:
    """Five against five have 252 deals: the clearest is worth 2 / 252, and eight times that is above 5 %."""
    low, high = scores([0.1, 0.2, 0.3, 0.4, 0.5]), scores([0.6, 0.7, 0.8, 0.9, 1.0])
    apart = change(RATE, low, high, paired=False)
    assert apart.p == apart.smallest_p == pytest.approx(2 / 252)
    assert not corrected([apart] * 6)[0].too_few
    assert corrected([apart] * 6)[0].distinguishable
    of_eight = corrected([apart] * 8)[0]
    assert not of_eight.distinguishable
    assert of_eight.too_few
    assert not of_eight.too_many


def test_unpaired_runs_are_resampled_apart() -> None:
    """The same numbers in other prompts: drawn together, their difference would always be 0."""
    values = scores([0.1 * k for k in range(10)])
    found = change(RATE, values, values, paired=False)
    assert found.value == 0.0
    assert found.interval is not None
    assert found.interval[0] < -0.1 < 0.1 < found.interval[1]


def test_names_are_told_apart() -> None:
    metrics = compared_metrics()
    assert len({metric.name for metric in metrics}) == len(metrics)
    assert find_metric("latency_p50") is find_metric("latency_p50_s")
    assert find_metric("energy_per_token").name == "energy_j_per_token"
    with pytest.raises(UnknownNameError, match="Did you mean 'latency_p50_s'"):
        find_metric("latncy_p50")


Row = tuple[float, ...]

P90 = find_metric("latency_p90")


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


def made(metric: Metric) -> tuple[Levels, list[Row], list[Row]]:
    a, b = rows(metric, 1, 9), rows(metric, 2, 9)
    return levels_of(metric, a, b), a, b


@pytest.mark.parametrize("metric", [RATE, SPEEDUP, LATENCY, P90])
def test_units_that_were_drawn(metric: Metric) -> None:
    levels, *sides = made(metric)
    counts = np.random.default_rng(3).integers(0, 4, (20, 9))
    counts[:, 0] += 1
    for side, units in enumerate(sides):
        expected = [by_hand(metric, [row for row, n in zip(units, drawn, strict=True) for _ in range(n)])
                    for drawn in counts]  # fmt: skip
        assert levels.drawn(side, counts.astype(float)) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [RATE, SPEEDUP, LATENCY, P90])
def test_pairs_that_were_swapped(metric: Metric) -> None:
    levels, a, b = made(metric)
    swaps = np.random.default_rng(4).integers(0, 2, (20, 9))
    one, other = levels.rearranged(swaps.astype(float), paired=True)
    for index, swapped in enumerate(swaps):
        there = [(y, x) if swap else (x, y) for x, y, swap in zip(a, b, swapped, strict=True)]
        assert one[index] == pytest.approx(by_hand(metric, [pair[0] for pair in there]))
        assert other[index] == pytest.approx(by_hand(metric, [pair[1] for pair in there]))


@pytest.mark.parametrize("metric", [RATE, SPEEDUP, LATENCY, P90])
def test_units_that_were_dealt_anew(metric: Metric) -> None:
    chance = np.random.default_rng(5)
    a, b = rows(metric, 1, 9), rows(metric, 2, 5)
    deals = np.array([chance.permutation([1] * 9 + [0] * 5) for _ in range(20)])
    one, other = levels_of(metric, a, b).rearranged(deals.astype(float), paired=False)
    for index, dealt in enumerate(deals):
        for level, side in ((one, 1), (other, 0)):
            chosen = [row for row, given in zip(a + b, dealt, strict=True) if given == side]
            assert level[index] == pytest.approx(by_hand(metric, chosen))


PERPLEXITY = {"name": "perplexity", "header": "ppl", "meaning": "made up", "of_sample": lambda _: 1.0, "kind": "work"}
numbers = st.one_of(st.sampled_from((math.inf, -math.inf, math.nan, 0.0, 1.0, 1e12, 1e-300)), st.floats(-1e6, 1e6))


@pytest.mark.parametrize("percentile", [None, 50])
@pytest.mark.parametrize("paired", [True, False])
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=5, max_size=12))
def test_changes_of_anything_are_finite_or_missing(paired: bool, percentile: int | None, rows: list[Any]) -> None:
    metric = Metric(**PERPLEXITY, percentile=percentile)
    row: Callable[[float], tuple[float, ...]] = lambda value: (value,) if percentile else (value, 1.0)  # noqa: E731
    a, b = ({frozenset([str(at)]): row(one[side]) for at, one in enumerate(rows)} for side in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = corrected([change(metric, a, b, paired=paired)])
    told = [getattr(found, name) for name in Change.__dataclass_fields__ if name != "metric"]
    flat = [one for value in told for one in (value if isinstance(value, tuple) else (value,))]
    assert all(math.isfinite(one) for one in flat if isinstance(one, float))
    if found.absolute is None:
        assert found.p_holm is None
        assert found.reason


def test_a_metric_that_is_infinite_is_missing_and_counted(
    build: Any, recorded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in's perplexity is infinite at a third of full depth's prompts, and at all of the fixed exit's."""

    def perplexity(sample: Any) -> float:
        if sample.operating_point != "full":
            return math.inf
        return math.inf if int(sample.sample_id[1:]) % 3 == 0 else 2.0 + len(sample.sample_id)

    metric = Metric(**PERPLEXITY | {"of_sample": perplexity})
    for module in ("reports.summary.summarise", "reports.comparing.change"):
        monkeypatch.setattr(f"{module}.all_metrics", lambda scores=(): (*all_metrics(scores), metric))
    times = {"full": [1.0, 1.1] * 9, "fixed:layer=5": [0.5, 0.6] * 9}
    a, b = recorded("a", seconds=times), recorded("b", seconds=times)
    found = compare_runs(a, b, Wanted())
    full, fixed = (point.of("perplexity") for point in found.points)
    assert (full.absolute, full.units) == (0.0, 12)
    assert full.reason == "left out, as not a finite number: 6 of A, 6 of B"
    assert fixed.p_holm is None
    assert fixed.reason.endswith("left out, as not a finite number: 18 of A, 18 of B")
    assert "perplexity: 24 number(s) left out as not finite or beyond all reason." in a.summary.notes
    assert [row.metrics.get("perplexity") is None for row in a.summary.rows] == [False, True]
    json.loads(json_text(comparison_document(found, [])), parse_constant=pytest.fail)
