"""The change of one number: hand-computed values, symmetry, and as many false alarms as promised."""

from __future__ import annotations

import numpy as np
import pytest

from harness.contracts import Metric
from harness.errors import UnknownNameError
from harness.records.estimate import NoInterval
from reports.comparing.change import (
    Change,
    change,
    compared_metrics,
    corrected,
    find_metric,
    level_of_both,
    needed_units,
)
from reports.metrics.point import Units
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
