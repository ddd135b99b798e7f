"""The hypervolume is the area under the front, by hand, and a strategy adds what nobody else covers."""

from __future__ import annotations

import numpy as np
import pytest

from harness.records.estimate import Estimate
from reports.summary.resampling import Candidate, Resampled, hypervolume, hypervolumes


def exact(value: float) -> Resampled:
    return Resampled(Estimate(value=value), np.zeros(0))


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(0.5, 0.4)], 0.2),  # one rectangle
        ([(0.25, 0.2), (0.5, 0.4)], 0.25 * 0.2 + 0.5 * 0.4),  # a staircase
        ([(0.5, 0.4), (0.25, 0.2), (0.8, 0.3), (0.5, 0.1)], 0.25),  # what is dominated adds nothing
        ([(1.0, 0.9), (1.7, 1.0)], 0.0),  # full depth and dearer
        ([(0.0, 1.0)], 1.0),  # all there is
        ([(0.5, 0.4), (0.5, 0.4)], 0.2),
    ],
)
def test_areas_by_hand(points: list[tuple[float, float]], area: float) -> None:
    assert hypervolume(points) == pytest.approx(area)


def test_another_reference_point() -> None:
    assert hypervolume([(1.0, 0.5), (3.0, 0.1)], reference=(2.0, 0.2)) == pytest.approx(1.0 * 0.3)


def test_it_is_the_share_of_random_points_that_are_dominated() -> None:
    chance = np.random.default_rng(0)
    points = [(float(cost), float(quality)) for cost, quality in chance.random((12, 2))]
    thrown = chance.random((40_000, 2))
    hit = np.any([(thrown[:, 0] >= cost) & (thrown[:, 1] <= quality) for cost, quality in points], axis=0)
    assert hypervolume(points) == pytest.approx(hit.mean(), abs=0.01)


def test_a_strategy_adds_what_nobody_else_covers() -> None:
    candidates = [
        Candidate("full", exact(10.0), exact(0.6)),
        Candidate("fixed", exact(5.0), exact(0.4)),
        Candidate("rl", exact(5.0), exact(0.5)),
        Candidate("rl", exact(8.0), exact(0.55)),
    ]
    found = hypervolumes(candidates, exact(10.0), blocks=1)
    assert found.total.value == pytest.approx(0.5 * 0.5 + 0.2 * 0.05)
    assert found.alone["fixed"].value == pytest.approx(0.2)
    assert found.contribution["fixed"].value == pytest.approx(0.0)
    assert found.alone["full"].value == found.contribution["full"].value == 0.0
    assert found.contribution["rl"].value == pytest.approx(0.26 - 0.2)
    assert found.total.interval is None  # one block cannot be resampled


def test_intervals_come_from_the_replicates_of_all_points_together() -> None:
    chance = np.random.default_rng(1)
    noise = chance.normal(0, 0.02, 1000)
    quality = Resampled(Estimate.of(0.5, (0.46, 0.54)), 0.5 + noise)
    full = Resampled(Estimate.of(2.0, (2.0, 2.0)), np.full(1000, 2.0))
    cost = Resampled(Estimate.of(1.0, (1.0, 1.0)), np.ones(1000))
    found = hypervolumes([Candidate("rl", cost, quality)], full, blocks=100)
    assert found.total.interval is not None
    low, high = found.total.interval
    assert found.total.value == pytest.approx(0.25)
    assert low < 0.25 < high
    assert high - low == pytest.approx(0.5 * 2 * 1.96 * 0.02, rel=0.15)
