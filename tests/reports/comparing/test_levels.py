"""Levels under counts are what NumPy makes of the same units written out one by one."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from harness.contracts import Metric
from reports.comparing.change import Levels, find_metric, levels_of

Row = tuple[float, ...]

RATE, RATIO, MEDIAN, P90 = map(find_metric, ("tokens_per_s", "speedup", "latency_p50", "latency_p90"))


def rows(metric: Metric, seed: int, n: int) -> list[Row]:
    """Rates have two numbers, ratios of rates four, percentiles one to three repeats."""
    chance = np.random.default_rng(seed)
    widths = chance.integers(1, 4, n) if metric.percentile else [4 if metric is RATIO else 2] * n
    return [tuple(float(x) for x in chance.gamma(3, 1, width)) for width in widths]


def by_hand(metric: Metric, chosen: list[Row]) -> float:
    if metric.percentile is not None:
        return float(np.percentile(list(chain(*chosen)), metric.percentile))
    totals = [sum(column) for column in zip(*chosen, strict=True)]
    return totals[0] / totals[1] if len(totals) == 2 else totals[0] / totals[1] / (totals[2] / totals[3])


def made(metric: Metric) -> tuple[Levels, list[Row], list[Row]]:
    a, b = rows(metric, 1, 9), rows(metric, 2, 9)
    return levels_of(metric, a, b), a, b


@pytest.mark.parametrize("metric", [RATE, RATIO, MEDIAN, P90])
def test_units_that_were_drawn(metric: Metric) -> None:
    levels, *sides = made(metric)
    counts = np.random.default_rng(3).integers(0, 4, (20, 9))
    counts[:, 0] += 1
    for side, units in enumerate(sides):
        expected = [by_hand(metric, [row for row, n in zip(units, drawn, strict=True) for _ in range(n)])
                    for drawn in counts]  # fmt: skip
        assert levels.drawn(side, counts.astype(float)) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [RATE, RATIO, MEDIAN, P90])
def test_pairs_that_were_swapped(metric: Metric) -> None:
    levels, a, b = made(metric)
    swaps = np.random.default_rng(4).integers(0, 2, (20, 9))
    one, other = levels.rearranged(swaps.astype(float), paired=True)
    for index, swapped in enumerate(swaps):
        there = [(y, x) if swap else (x, y) for x, y, swap in zip(a, b, swapped, strict=True)]
        assert one[index] == pytest.approx(by_hand(metric, [pair[0] for pair in there]))
        assert other[index] == pytest.approx(by_hand(metric, [pair[1] for pair in there]))


@pytest.mark.parametrize("metric", [RATE, RATIO, MEDIAN, P90])
def test_units_that_were_dealt_anew(metric: Metric) -> None:
    chance = np.random.default_rng(5)
    a, b = rows(metric, 1, 9), rows(metric, 2, 5)
    deals = np.array([chance.permutation([1] * 9 + [0] * 5) for _ in range(20)])
    one, other = levels_of(metric, a, b).rearranged(deals.astype(float), paired=False)
    for index, dealt in enumerate(deals):
        for level, side in ((one, 1), (other, 0)):
            chosen = [row for row, given in zip(a + b, dealt, strict=True) if given == side]
            assert level[index] == pytest.approx(by_hand(metric, chosen))
