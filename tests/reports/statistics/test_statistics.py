"""Percentiles, totals over totals, and intervals that cover the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from reports.statistics.intervals import (
    MINIMUM_PAIRS,
    Pair,
    bootstrap_interval,
    draws,
    mean,
    median,
    paired_ratio,
    percentile,
    pooled,
    ratio,
    replicate_interval,
)


def noisy_pairs(generator: np.random.Generator, n: int, speedup: float = 1.0, noise: float = 0.05) -> list[Pair]:
    size = generator.lognormal(0, 0.8, n)
    baseline = size * generator.lognormal(0, noise, n)
    other = size / speedup * generator.lognormal(0, noise, n)
    return [Pair(float(a), float(b)) for a, b in zip(baseline, other, strict=True)]


def test_percentile_interpolates_between_order_statistics() -> None:
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([0, 10], 90) == pytest.approx(9.0)
    assert percentile([0, 10], 0) == 0
    assert percentile([0, 10], 100) == 10


def test_percentile_of_one_value_is_that_value() -> None:
    assert [percentile([7.0], percent) for percent in (0, 50, 99, 100)] == [7.0] * 4


def test_statistics_of_nothing_are_none_and_never_zero() -> None:
    assert percentile([], 50) is None
    assert median([]) is None
    assert mean([]) is None
    assert ratio(1, 0) is None
    assert paired_ratio([]) is None
    assert bootstrap_interval([]) is None


def test_paired_ratio_is_totals_over_totals_not_a_mean_of_ratios() -> None:
    pairs = [Pair(1.0, 0.5), Pair(9.0, 9.5)]  # the mean of the ratios would be 1.47
    assert paired_ratio(pairs) == 1.0


def test_paired_ratio_compares_costs_per_unit() -> None:
    # 6 s for 3 tokens against 2 s for 2 tokens: 2 s/token against 1 s/token
    assert paired_ratio([Pair(6.0, 2.0, 3, 2)]) == 2.0


def test_paired_ratio_needs_positive_totals() -> None:
    assert paired_ratio([Pair(1.0, 0.0)]) is None
    assert paired_ratio([Pair(1.0, 1.0, 0, 1)]) is None


@pytest.mark.parametrize("factor", [1e-3, 1.0, 250.0])
def test_ratio_and_interval_do_not_change_when_both_sides_are_scaled(factor: float) -> None:
    pairs = noisy_pairs(np.random.default_rng(0), 12, speedup=1.3)
    scaled = [Pair(pair.baseline * factor, pair.other * factor) for pair in pairs]
    assert paired_ratio(scaled) == pytest.approx(paired_ratio(pairs))
    assert bootstrap_interval(scaled) == pytest.approx(bootstrap_interval(pairs))


def test_interval_is_the_inverse_interval_when_the_sides_are_swapped() -> None:
    pairs = noisy_pairs(np.random.default_rng(1), 12, speedup=1.3)
    low, high = bootstrap_interval(pairs) or (0, 0)
    swapped = bootstrap_interval([Pair(pair.other, pair.baseline) for pair in pairs])
    assert swapped == pytest.approx((1 / high, 1 / low), rel=1e-3)  # quantiles interpolate, hence not exactly


def test_interval_contains_the_ratio_and_is_reproducible() -> None:
    pairs = noisy_pairs(np.random.default_rng(2), 20, speedup=1.4)
    low, high = bootstrap_interval(pairs, seed=5) or (0, 0)
    assert low < (paired_ratio(pairs) or 0) < high
    assert bootstrap_interval(pairs, seed=5) == (low, high)
    assert bootstrap_interval(pairs, seed=6) != (low, high)


def test_identical_pairs_give_an_interval_of_no_width() -> None:
    assert bootstrap_interval([Pair(2.0, 1.0)] * 10) == pytest.approx((2.0, 2.0))


def test_there_is_no_interval_below_the_minimum_number_of_pairs() -> None:
    pairs = noisy_pairs(np.random.default_rng(3), MINIMUM_PAIRS)
    assert bootstrap_interval(pairs) is not None
    assert bootstrap_interval(pairs[:-1]) is None


def test_no_interval_where_a_resample_could_divide_by_zero() -> None:
    assert bootstrap_interval([Pair(1.0, 0.0)] * 8) is None


@pytest.mark.parametrize("n", [MINIMUM_PAIRS, 10, 30])
@pytest.mark.parametrize("speedup", [1.0, 1.5])
def test_interval_covers_the_true_ratio_about_95_percent_of_the_time(n: int, speedup: float) -> None:
    generator = np.random.default_rng(n)
    runs = 200
    covered = 0
    for _ in range(runs):
        low, high = bootstrap_interval(noisy_pairs(generator, n, speedup), resamples=1_000) or (2, 2)
        covered += low <= speedup <= high
    assert 0.86 <= covered / runs <= 0.995


def test_chunks_of_resamples_do_not_change_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = noisy_pairs(np.random.default_rng(4), 50, speedup=1.2)
    whole = bootstrap_interval(pairs)
    monkeypatch.setattr("reports.statistics.intervals._CHUNK", 50 * 7)  # 7 resamples at a time
    assert bootstrap_interval(pairs) == pytest.approx(whole)
    monkeypatch.setattr("reports.statistics.intervals._KEPT", 0)  # and drawn when they are needed
    assert bootstrap_interval(pairs) == pytest.approx(whole)


def test_pooling_adds_up_the_repeats_of_one_unit_in_order() -> None:
    repeats = [("b", Pair(1, 2, 3, 4)), ("a", Pair(1, 1)), ("b", Pair(10, 20, 30, 40))]
    assert pooled(repeats) == [Pair(11, 22, 33, 44), Pair(1, 1, 1, 1)]


def test_draws_are_the_intervals_own() -> None:
    counts = draws(7, resamples=50)
    assert counts.shape == (50, 7)
    assert (counts.sum(1) == 7).all()
    pairs = noisy_pairs(np.random.default_rng(0), 7)
    drawn = draws(7) @ np.array([[pair.baseline, pair.other] for pair in pairs])
    assert replicate_interval(drawn[:, 0] / drawn[:, 1], 7) == pytest.approx(bootstrap_interval(pairs))
