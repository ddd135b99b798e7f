"""One number of two runs: as measured, with the interval of its change, and rearranged between the runs.

A level is a rate (totals over totals), a ratio of two rates, or a percentile over all repeats. The change of a rate has
the t interval of its linearisation, that of a percentile the bootstrap's. What was chosen comes as counts, a row per
choice and a column per unit: how often a unit was drawn, or 0 and 1 for the run that it goes to. So a rate of thousands
of choices is one product of matrices, and a percentile is read off values that are sorted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.contracts import Metric
from harness.records.estimate import Interval
from reports.statistics.intervals import half_width, replicate_interval, resampled

__all__ = ["Levels", "Percentiles", "Rates", "levels_of"]

Floats: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = Sequence[tuple[float, ...]]
Intervals: TypeAlias = tuple[Interval | None, Interval | None]

RESAMPLES = 2_000


class Levels(Protocol):
    """The level of one number in A and in B."""

    def drawn(self, side: int, counts: Floats) -> Floats:
        """Return the levels of A (0) or B (1), ``[choices]``, when its units were drawn ``[choices, units]`` times."""

    def intervals(self, *, paired: bool, seed: int) -> Intervals:
        """Return the 95 % intervals of B − A and of B / A − 1, ``None`` where there is none."""

    def rearranged(self, chosen: Floats, *, paired: bool) -> tuple[Floats, Floats]:
        """Return the levels in A and in B after a rearrangement.

        Args:
            chosen: paired, 1 where a pair is swapped, ``[choices, pairs]``; else 1 where a unit goes to A,
                ``[choices, units of A, then of B]``.
            paired: which of the two.
        """


def levels_of(metric: Metric, a: Rows, b: Rows) -> Levels:
    """Return a metric's levels from its units' rows in A and in B (:data:`reports.metrics.units.Units`)."""
    if metric.percentile is not None:
        return Percentiles(a, b, metric.percentile)
    return Rates(a, b, sized_by_costs=metric.is_cost)


class Rates:
    """Totals over totals, or a ratio of two such.

    Args:
        a: rows of two or four numbers, each above its line and below it; b: likewise.
        sized_by_costs: a unit is as large as what stands above the line, else as what stands below.
    """

    def __init__(self, a: Rows, b: Rows, *, sized_by_costs: bool = False) -> None:
        self._tables = [np.asarray(rows, dtype=np.float64) for rows in (a, b)]
        self._size = 0 if sized_by_costs else 1

    def drawn(self, side: int, counts: Floats) -> Floats:
        """See :class:`Levels`."""
        return _rates(counts @ self._tables[side])

    def intervals(self, *, paired: bool, seed: int) -> Intervals:
        """See :class:`Levels`; nothing is drawn."""
        if any(np.any(table.sum(0)[1:] <= 0) for table in self._tables):
            return None, None
        (a, moved_a, share_a), (b, moved_b, share_b) = map(self._influences, self._tables)

        def half(before: Floats, after: Floats) -> float:
            if paired:
                return half_width((after - before, (share_a + share_b) / 2))
            return half_width((before, share_a), (after, share_b))

        absolute = half(moved_a, moved_b)
        if not a > 0 < b:
            return (b - a - absolute, b - a + absolute), None
        with np.errstate(over="ignore"):  # an interval without an end
            factor = float(np.exp(half(moved_a / a, moved_b / b)))
        return (b - a - absolute, b - a + absolute), (b / a / factor - 1, b / a * factor - 1)

    def _influences(self, table: Floats) -> tuple[float, Floats, Floats]:
        """A level, what each unit moves it by, and each unit's share of the size."""
        level, totals = float(_rates(table.sum(0, keepdims=True))[0]), table.sum(0)
        shares = table[:, 1:] / totals[1:]
        moved = table[:, 0] * _rates(np.array([[1.0, *totals[1:]]])) - level * shares[:, 0]
        if len(totals) == 4:
            moved += level * (shares[:, 2] - shares[:, 1])
        sizes = table[:, self._size :: 2].sum(0)
        share = (table[:, self._size :: 2] / sizes).mean(1) if np.all(sizes > 0) else shares[:, 0]
        return level, moved, share

    def rearranged(self, chosen: Floats, *, paired: bool) -> tuple[Floats, Floats]:
        """See :class:`Levels`."""
        a, b = self._tables
        first = a.sum(0) + chosen @ (b - a) if paired else chosen @ np.concatenate([a, b])
        return _rates(first), _rates(a.sum(0) + b.sum(0) - first)


class Percentiles:
    """A percentile over all repeats of all units, interpolated linearly (Hyndman and Fan 1996, type 7).

    Args:
        a: rows of one value per repeat, not all of one length; b: likewise.
        percent: which, 0…100.
    """

    def __init__(self, a: Rows, b: Rows, percent: float) -> None:
        self._percent = percent
        sides = [_flat(rows) for rows in (a, b)]
        self._sorted = [(values[order], units[order]) for values, units, order in sides]
        values = np.concatenate([side[0] for side in self._sorted])
        order = np.argsort(values, kind="stable")
        self._together = values[order]
        self._units = np.concatenate([side[1] for side in self._sorted])[order]
        self._in_b = order >= len(self._sorted[0][0])
        self._offset, self._units_of_b = len(a), len(b)

    def drawn(self, side: int, counts: Floats) -> Floats:
        """See :class:`Levels`."""
        values, units = self._sorted[side]
        return _at(values, np.cumsum(counts.astype(np.int32)[:, units], axis=1, dtype=np.int32), self._percent)

    def intervals(self, *, paired: bool, seed: int) -> Intervals:
        """See :class:`Levels`; by resampling."""
        sizes = self._offset, self._units_of_b
        seeds = seed, seed if paired else seed + 1  # not the same draws for other prompts
        first, second = (
            np.concatenate([self.drawn(side, counts) for counts in resampled(sizes[side], RESAMPLES, seeds[side])])
            for side in (0, 1)
        )
        n = min(sizes)
        relative = replicate_interval(second / first - 1, n) if bool(np.all(first > 0)) else None
        return replicate_interval(second - first, n), relative

    def rearranged(self, chosen: Floats, *, paired: bool) -> tuple[Floats, Floats]:
        """See :class:`Levels`."""
        rows = chosen.astype(np.int8)
        if paired:  # A keeps its own values of a pair that stays, and has B's of one that is swapped
            first = rows[:, self._units] ^ (~self._in_b).astype(np.int8)
        else:
            first = rows[:, self._units + self._offset * self._in_b]
        reached = np.cumsum(first, axis=1, dtype=np.int32)
        rest = np.arange(1, len(self._together) + 1, dtype=np.int32) - reached
        return _at(self._together, reached, self._percent), _at(self._together, rest, self._percent)


def _rates(totals: Floats) -> Floats:
    """Rates of totals ``[choices, 2 or 4]``; not finite where nothing stands below the line."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first: Floats = totals[:, 0] / totals[:, 1]
        return first if totals.shape[1] == 2 else first / (totals[:, 2] / totals[:, 3])


def _flat(rows: Rows) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """All values, the unit of each, and their order."""
    values = np.array([value for row in rows for value in row], dtype=np.float64)
    units = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return values, units, np.argsort(values, kind="stable")


def _at(values: Floats, reached: NDArray[np.int32], percent: float) -> Floats:
    """The percentile of sorted values of which so many were ``reached`` up to each, ``[choices, values]``."""
    place = (reached[:, -1] - 1) * (percent / 100)
    low, high = (
        np.count_nonzero(reached <= edge[:, None], axis=1)
        for edge in (np.floor(place).astype(np.int32), np.ceil(place).astype(np.int32))
    )
    found: Floats = values[low] + (place - np.floor(place)) * (values[high] - values[low])
    return found
