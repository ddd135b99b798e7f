"""Intervals of counted shares, against values worked out elsewhere."""

from __future__ import annotations

import math

import pytest

from harness.doctor.binomial import central_range, wilson_interval


@pytest.mark.parametrize(
    ("trials", "probability", "expected"),
    [(20, 0.95, (17, 20)), (100, 0.95, (90, 99)), (10, 0.5, (2, 8)), (1, 0.95, (0, 1))],
)
def test_the_central_range(trials: int, probability: float, expected: tuple[int, int]) -> None:
    assert central_range(trials, probability) == expected


@pytest.mark.parametrize("trials", [3, 20, 57])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.95])
def test_the_range_holds_what_it_promises_and_no_narrower_one_does(trials: int, probability: float) -> None:
    mass = [math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(trials + 1)]
    low, high = central_range(trials, probability)
    assert math.fsum(mass[low : high + 1]) >= 0.95
    assert math.fsum(mass[:low]) <= 0.025
    assert math.fsum(mass[high + 1 :]) <= 0.025
    assert math.fsum(mass[: low + 1]) > 0.025
    assert math.fsum(mass[high:]) > 0.025


def test_wilson_s_interval() -> None:
    assert wilson_interval(19, 20) == pytest.approx((0.7639, 0.9911), abs=5e-5)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))
