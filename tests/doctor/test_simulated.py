"""Simulated coverage: counted right, near what is promised, and able to fail."""

from __future__ import annotations

import numpy as np
import pytest

from harness.doctor import simulated
from harness.doctor.simulated import coverage, most_covered, simulate_coverage, synthetic_pairs
from reports.statistics.intervals import Pair, bootstrap_interval


def test_an_interval_covers_1_with_its_ends_and_a_missing_one_covers_nothing() -> None:
    found = coverage(8, [(0.9, 1.1), (1.0, 1.2), (0.7, 1.0), (1.01, 1.2), (0.8, 0.99), None])
    assert (found.covered, found.comparisons, found.pairs) == (3, 6, 8)
    assert found.share == 0.5
    assert found.share_ci == pytest.approx((0.1876, 0.8124), abs=5e-5)  # Wilson (1927), by hand
    assert found.half_width == pytest.approx(0.1)


def test_nothing_but_missing_intervals_has_no_width() -> None:
    assert coverage(3, [None, None]).half_width is None


def test_neither_name_is_favoured() -> None:
    generator = np.random.default_rng(0)
    pairs = [pair for _ in range(1000) for pair in synthetic_pairs(generator, 20)]
    logs = np.log([pair.baseline / pair.other for pair in pairs])
    assert abs(logs.mean()) < 4 * logs.std() / len(logs) ** 0.5
    assert abs(np.mean(logs > 0) - 0.5) < 4 * 0.5 / len(logs) ** 0.5


def test_work_is_the_pair_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOISE_SIGMA", "DRIFT_SIGMA", "OUTLIER_SHARE"):
        monkeypatch.setattr(simulated, name, 0.0)
    pairs = synthetic_pairs(np.random.default_rng(0), 30)
    assert all(pair.baseline == pair.other for pair in pairs)
    assert len({pair.baseline for pair in pairs}) == 30


def test_coverage_of_plain_noise_is_near_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORK_SIGMA", "DRIFT_SIGMA", "OUTLIER_SHARE"):
        monkeypatch.setattr(simulated, name, 0.0)
    steps: list[int] = []
    (found,) = simulate_coverage((20,), comparisons=400, seed=3, step=steps.append)
    assert 0.91 < found.share < 0.98
    assert steps == list(range(1, 401))


def test_a_seed_decides() -> None:
    first, again, other = (simulate_coverage((8,), comparisons=20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first[0].half_width != other[0].half_width


def test_a_difference_of_five_percent_is_not_covered() -> None:
    """What a coverage near 95 % would hide: intervals so wide that they cover anything."""
    generator = np.random.default_rng(0)
    intervals = []
    for number in range(100):
        pairs = [Pair(pair.baseline * 1.05, pair.other) for pair in synthetic_pairs(generator, 20)]
        intervals.append(bootstrap_interval(pairs, resamples=1000, seed=number))
    assert coverage(20, intervals).share < 0.2


@pytest.mark.parametrize("pairs", [5, 6])
def test_no_interval_of_resamples_reaches_beyond_the_pairs(pairs: int) -> None:
    """One name wins all pairs in 2 of 2**pairs comparisons, and then 1 is out of reach."""
    generator = np.random.default_rng(1)
    one_sided = 0
    for number in range(600):
        drawn = synthetic_pairs(generator, pairs)
        if len({pair.baseline > pair.other for pair in drawn}) == 1:
            one_sided += 1
            interval = bootstrap_interval(drawn, resamples=500, seed=number)
            assert interval is not None
            assert not interval[0] <= 1 <= interval[1]
    assert one_sided / 600 == pytest.approx(1 - most_covered(pairs), abs=4 * (0.06 * 0.94 / 600) ** 0.5)
