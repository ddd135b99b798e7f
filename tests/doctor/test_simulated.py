"""Simulated comparisons: counted right, with the true ratio they claim, and able to fail."""

from __future__ import annotations

import numpy as np
import pytest

from harness.doctor.simulated import CASES, Case, coverage, simulate_coverage
from harness.records.estimate import NoInterval
from reports.statistics.intervals import Pair, paired_ratio


def test_an_interval_covers_1_with_its_ends_and_a_missing_one_covers_nothing() -> None:
    found = coverage(8, [(0.9, 1.1), (1.0, 1.2), (0.7, 1.0), (1.01, 1.2), (0.8, 0.99), NoInterval.UNDEFINED])
    assert (found.covered, found.comparisons, found.pairs) == (3, 6, 8)
    assert found.share == 0.5
    assert found.share_ci == pytest.approx((0.1876, 0.8124), abs=5e-5)  # Wilson (1927), by hand
    assert found.half_width == pytest.approx(0.1)


def test_nothing_but_missing_intervals_has_no_width() -> None:
    assert coverage(3, [NoInterval.FEW_PAIRS] * 2).half_width is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_true_ratio_is_that_of_very_many_blocks(case: Case) -> None:
    found = paired_ratio(case.draw(np.random.default_rng(0), 40_000))
    assert found == pytest.approx(case.ratio, rel=0.015)


def test_a_seed_decides() -> None:
    first, again, other = (simulate_coverage(CASES[:1], (8,), comparisons=20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first[0].coverages[0].half_width != other[0].coverages[0].half_width


def test_steps_are_counted_over_cases_and_numbers_of_pairs() -> None:
    steps: list[int] = []
    found = simulate_coverage(CASES[:2], (5, 8), comparisons=10, step=steps.append)
    assert steps == [10, 20, 30, 40]
    assert [[one.pairs for one in case.coverages] for case in found] == [[5, 8], [5, 8]]


def test_a_difference_of_five_percent_is_not_covered() -> None:
    """What a coverage near 95 % would hide: intervals so wide that they cover anything."""

    def draw(generator: np.random.Generator, pairs: int) -> list[Pair]:
        return [Pair(1.05 * float(time), float(other)) for time, other in generator.normal(1, 0.02, (pairs, 2))]

    (found,) = simulate_coverage([Case("five percent slower", draw)], (20,), comparisons=200)
    assert found.coverages[0].share < 0.2
