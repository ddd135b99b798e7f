"""Statistics by hand, of what is no number, and which numbers can be true."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.records.estimate import NoInterval
from reports.statistics import intervals
from reports.statistics.intervals import (
    MINIMUM_DIFFERING,
    MINIMUM_PAIRS,
    MINIMUM_SAMPLES,
    Pair,
    half_width,
    mean,
    mean_interval,
    median,
    paired_ratio,
    percentile,
    pooled,
    ratio,
    ratio_interval,
    score_interval,
    share_bounds,
)
from reports.statistics.plausible import LARGEST, is_measurable, is_plausible
from reports.statistics.significance import holm, ratio_p, sign_flip_p, swap_p


def noisy_pairs(generator: np.random.Generator, n: int, speedup: float = 1.0, noise: float = 0.05) -> list[Pair]:
    size = generator.lognormal(0, 0.8, n)
    baseline = size * generator.lognormal(0, noise, n)
    other = size / speedup * generator.lognormal(0, noise, n)
    return [Pair(float(a), float(b)) for a, b in zip(baseline, other, strict=True)]


def test_statistics_of_nothing_are_none_and_never_zero() -> None:
    assert percentile([], 50) is None
    assert median([]) is None
    assert mean([]) is None
    assert ratio(1, 0) is None
    assert paired_ratio([]) is None
    assert share_bounds([]) is NoInterval.FEW_PAIRS
    assert ratio_interval([]) is mean_interval([]) is NoInterval.FEW_PAIRS
    assert score_interval([]) is NoInterval.FEW_SAMPLES


def test_percentiles_interpolate_between_order_statistics() -> None:
    assert [percentile([4, 1, 3, 2], at) for at in (0, 50, 90, 100)] == pytest.approx([1, 2.5, 3.7, 4])


def test_paired_ratio_is_totals_over_totals_not_a_mean_of_ratios() -> None:
    pairs = [Pair(1.0, 0.5), Pair(9.0, 9.5)]  # the mean of the ratios would be 1.47
    assert paired_ratio(pairs) == 1.0
    # 6 s for 3 tokens against 2 s for 2 tokens: 2 s/token against 1 s/token
    assert paired_ratio([Pair(6.0, 2.0, 3, 2)]) == 2.0


def test_paired_ratio_divides_by_positive_totals_alone() -> None:
    assert paired_ratio([Pair(1.0, 0.0)]) is None
    assert paired_ratio([Pair(1.0, 1.0, 0, 1)]) is None
    assert paired_ratio([Pair(1.0, -2.0), Pair(1.0, 1.0)]) is None
    assert paired_ratio([Pair(-1.0, 1.0)]) is None
    assert paired_ratio([Pair(0.0, 1.0)]) == 0.0  # measured, and nothing


def test_the_interval_of_a_ratio_by_hand() -> None:
    """Blocks of equal size: w = 1/5 each, four degrees of freedom, t = 2.776445."""
    pairs = [Pair(2.0, 1.0 + d) for d in (-0.1, 0.1, -0.2, 0.2, 0.0)]
    z = [d / 5 for d in (0.1, -0.1, 0.2, -0.2, 0.0)]
    w = [(0.2 + (1 + d) / 5) / 2 for d in (-0.1, 0.1, -0.2, 0.2, 0.0)]
    assert 1 / sum(share**2 for share in w) - 1 == pytest.approx(3.975, abs=1e-3)
    half = 2.781 * math.sqrt(5 / 4 * sum(one**2 for one in z))  # a quantile between those of 3 and of 4 degrees
    assert ratio_interval(pairs) == pytest.approx((2 / math.exp(half), 2 * math.exp(half)), rel=1e-3)


def test_a_block_as_large_as_all_others_leaves_one_degree_of_freedom() -> None:
    """Kish's number of pairs is below 2 here; degrees stop at 1, where t is 12.7062."""
    share = np.array([0.9, 0.025, 0.025, 0.025, 0.025])
    influence = np.array([0.02, -0.02, 0.0, 0.0, 0.0])
    assert 1 / (share @ share) - 1 < 0.3
    assert half_width(influence, share) == pytest.approx(12.7062 * math.sqrt(5 / 4 * 8e-4), rel=1e-5)


def test_intervals_of_ratios_know_scales_and_units() -> None:
    pairs = noisy_pairs(np.random.default_rng(0), 12, speedup=1.3)
    scaled = [Pair(250.0 * pair.baseline, 250.0 * pair.other) for pair in pairs]
    low, high = ratio_interval(pairs)
    assert ratio_interval(scaled) == pytest.approx((low, high))
    assert ratio_interval([Pair(pair.other, pair.baseline) for pair in pairs]) == pytest.approx((1 / high, 1 / low))
    # Twice the seconds for twice the tokens is no noise at all.
    assert ratio_interval([Pair(2.0 * n, 1.0 * n, 2 * n, n) for n in range(1, 9)]) == pytest.approx((1.0, 1.0))
    low, high = ratio_interval([Pair(2.0 * n, 1.0 * n, n, 9 - n) for n in range(1, 9)])
    assert low < high


def test_there_is_no_interval_below_the_minimum_number_of_pairs() -> None:
    pairs = noisy_pairs(np.random.default_rng(3), MINIMUM_PAIRS)
    assert isinstance(ratio_interval(pairs), tuple)
    assert ratio_interval(pairs[:-1]) is ratio_interval(pairs[:1]) is NoInterval.FEW_PAIRS
    half = 2.776445 * math.sqrt(2.5 / 5)  # Student's t of four degrees, of 1 to 5
    assert mean_interval([[float(value)] for value in range(1, 6)]) == pytest.approx((3 - half, 3 + half))
    assert mean_interval([[1.0]] * (MINIMUM_PAIRS - 1)) is NoInterval.FEW_PAIRS


def test_a_single_zero_is_a_measurement_but_totals_of_zero_and_negative_costs_have_no_ratio() -> None:
    others = [Pair(1.0, 1.0)] * 7
    assert isinstance(ratio_interval([Pair(0.0, 1.0), *others]), tuple)
    assert isinstance(ratio_interval([Pair(1.0, 0.0), *others]), tuple)
    for broken in ([Pair(1.0, 0.0)] * 8, [Pair(0.0, 1.0)] * 8, [Pair(-0.1, 1.0), *others], [Pair(1, 1, 0, 1)] * 8):
        assert ratio_interval(broken) is NoInterval.UNDEFINED


def test_samples_of_a_unit_are_no_further_units() -> None:
    """Four copies of each difference make nothing more certain."""
    values = np.random.default_rng(2).normal(0.1, 1, 60).tolist()
    assert score_interval([[value] * 4 for value in values]) == pytest.approx(score_interval([[v] for v in values]))
    apart = score_interval([[value] for value in values * 4])
    together = score_interval([[value] * 4 for value in values])
    assert apart[1] - apart[0] < 0.6 * (together[1] - together[0])


def test_scores_need_samples_and_differences() -> None:
    def differences(samples: int, differing: int) -> list[list[float]]:
        return [[0.1 * (1 + n % 3) if n < differing else 0.0] for n in range(samples)]

    assert score_interval(differences(MINIMUM_SAMPLES - 1, 40)) is NoInterval.FEW_SAMPLES
    assert score_interval(differences(MINIMUM_SAMPLES, MINIMUM_DIFFERING - 1)) is NoInterval.FEW_DIFFERING
    assert score_interval(differences(10 * MINIMUM_SAMPLES, 0)) is NoInterval.FEW_DIFFERING
    assert isinstance(score_interval(differences(MINIMUM_SAMPLES, MINIMUM_DIFFERING)), tuple)
    assert score_interval([[0.1] * 20] * 4) is NoInterval.FEW_PAIRS  # 80 samples, and four windows


def test_a_share_s_interval_stays_between_0_and_1() -> None:
    low, high = share_bounds([Pair(9.0 + (n % 2), 10.0) for n in range(10)])
    assert 0.88 < low < 0.95 < high <= 1.0
    assert share_bounds([Pair(n % 2, 1.0) for n in range(4)]) is NoInterval.FEW_PAIRS
    assert share_bounds([Pair(0.0, 0.0)] * 8) is NoInterval.FEW_PAIRS
    assert share_bounds([Pair(0.0, 0.0)] * 8 + [Pair(n % 2, 1.0) for n in range(4)]) is NoInterval.FEW_PAIRS
    for alike in (0.0, 0.3, 1.0):  # a certainty it would be, of eight documents
        assert share_bounds([Pair(alike, 1.0)] * 8) is NoInterval.FEW_DIFFERING


def test_a_share_of_units_that_are_0_or_1_has_clopper_and_pearsons_interval() -> None:
    """15 of 16 but for one degree of freedom, and t in the normal's place: a little wider than [0.698, 0.998]."""
    low, high = share_bounds([Pair(n > 0, 1.0) for n in range(16)])
    assert 0.65 < low < 0.698
    assert 0.998 < high < 1.0


def test_pooling_adds_up_the_repeats_of_one_unit_in_order() -> None:
    repeats = [("b", Pair(1, 2, 3, 4)), ("a", Pair(1, 1)), ("b", Pair(10, 20, 30, 40))]
    assert pooled(repeats) == [Pair(11, 22, 33, 44), Pair(1, 1, 1, 1)]


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
    assert swap_p(lambda rows: np.full(len(rows), np.nan), 1.0, 8) == 1.0


def test_what_can_be_true_and_what_can_have_been_measured() -> None:
    assert all(map(is_plausible, [0, -0.0, 1, -1.5, 5e-324, LARGEST, -LARGEST, True]))
    for number in (1e308, -1e308, 1.001e12, 10**400, math.inf, math.nan, -math.inf):
        assert not is_plausible(number), number
        assert not is_measurable(number), number
    measurable = [number for number in (0.0, 1e-9, 5e-324, -1.0) if is_measurable(number)]
    assert measurable == [0.0, 1e-9]
