"""The change of one number from A to B: which numbers can be compared, interval and permutation test, paired or not.

A level is a rate (totals over totals), a ratio of two rates, or a percentile over all repeats. The change of a rate has
the t interval of its linearisation, that of a percentile the bootstrap's. Paired, the test swaps the runs of whole
units, unpaired it deals them out anew (:mod:`reports.statistics.significance`). The statistic of the test is the
difference of the levels, but for paired medians: there it is the mean log ratio of the pairs
(:func:`_p_of_log_ratios`). Prompts, or blocks of them, are what varies in an interval: that another day, or another
process, is slower or faster is not in it. A score of few prompts, or one that few prompts differ in, has neither
interval nor test (:func:`reports.statistics.intervals.score_interval`).

What was chosen comes as counts, a row per choice and a column per unit: how often a unit was drawn, or 0 and 1 for the
run that it goes to. So a rate of thousands of choices is one product of matrices, and a percentile is read off values
that are sorted once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.contracts import Metric
from harness.errors import UnknownNameError
from harness.records.estimate import Estimate, Interval, NoInterval
from reports.metrics.point import Units
from reports.metrics.vocabulary import all_metrics
from reports.statistics.intervals import (
    MINIMUM_DIFFERING,
    MINIMUM_SAMPLES,
    Pair,
    half_width,
    known,
    ratio,
    replicate_interval,
    resampled,
    share_bounds,
)
from reports.statistics.plausible import all_plausible, is_plausible, plausible
from reports.statistics.significance import (
    LEVEL,
    SWAPS,
    deal_p,
    holm,
    sign_flip_p,
    smallest_deal_p,
    smallest_p,
    swap_p,
)

Floats: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = Sequence[tuple[float, ...]]
Intervals: TypeAlias = tuple[Interval | None, Interval | None]

UNMEASURED = "not measured in both"
RESAMPLES = 2_000

AGREEMENT = Metric(
    name="agreement",
    header="A = B",
    meaning="share of the longer completion's places where both have one token",
    units=lambda _: {},
    kind="work",
    better="higher",
    form="fraction",
)
"""The one number that belongs to both runs together, and is no change."""


def compared_metrics(scores: Iterable[str] = ()) -> tuple[Metric, ...]:
    """Return the metrics of a comparison, scores first, in the order of tables.

    Args:
        scores: names of scores that the runs recorded.
    """
    found = [metric for metric in all_metrics(scores) if metric.units or metric.of_sample]
    judged = [metric for metric in found if metric.kind == "score"]
    return (*judged, AGREEMENT, *(metric for metric in found if metric.kind != "score"))


def find_metric(name: str, scores: Iterable[str] = ()) -> Metric:
    """Return a metric by name, or by its name without the unit: ``latency_p50`` is ``latency_p50_s``.

    Args:
        name: of the metric.
        scores: names of scores that the runs recorded.

    Raises:
        UnknownNameError: there is none; names the closest one.
    """
    metrics = {metric.name: metric for metric in compared_metrics(scores)}
    plain = {re.sub(r"_[sjw](?=_|$)", "", known): metric for known, metric in metrics.items()}
    found = metrics.get(name) or plain.get(name)
    if found is None:
        raise UnknownNameError("metric", name, metrics)
    return found


def needed_units(metric: Metric) -> int:
    """Return below how many prompts there is no interval: five of them must lie beyond a percentile."""
    return 5 if metric.percentile is None else round(500 / (100 - metric.percentile))


@dataclass(frozen=True, slots=True)
class Change:
    """One number in A and in B.

    Attributes:
        metric: which.
        a, b: levels, on the units compared.
        absolute, relative: b − a, and b over a − 1. For the agreement, its level and ``None``.
        absolute_interval, relative_interval: 95 %.
        p: of a permutation test of "no change". p_holm: corrected over the operating points of a task.
        units: independent units in A; in B there are as many where they are paired. prompts: that they hold.
        paired: compared prompt by prompt.
        reason: why there is no change, or no interval, or what else it rests on than on prompts paired one by one.
        no_interval: the reason by name, of a change that has no interval.
        source: of an energy. measured: a sensor measured it, in both runs.
        smallest_p: what so many units could give at best.
        family: operating points tested together.
        applies: false where there is nothing to compare by definition (full depth against full depth).
    """

    metric: Metric
    a: float | None = None
    b: float | None = None
    absolute: float | None = None
    relative: float | None = None
    absolute_interval: Interval | None = None
    relative_interval: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    units: int = 0
    prompts: int = 0
    paired: bool = True
    reason: str = ""
    no_interval: NoInterval | None = None
    source: str = ""
    measured: bool = True
    smallest_p: float = 1.0
    family: int = 1
    applies: bool = True

    @property
    def value(self) -> float | None:
        """The change as tables write it: relative for costs, absolute for all else."""
        return self.relative if self.metric.is_cost else self.absolute

    @property
    def interval(self) -> Interval | None:
        """Of :attr:`value`."""
        return self.relative_interval if self.metric.is_cost else self.absolute_interval

    @property
    def estimate(self) -> Estimate | None:
        """:attr:`value` with its interval, or why that is missing; ``None`` where nothing plausible is known."""
        if self.value is None or not is_plausible(self.value):
            return None
        interval = self.interval if self.interval is not None and all_plausible(self.interval) else self.no_interval
        return Estimate.of(self.value, interval)

    @property
    def distinguishable(self) -> bool:
        """Whether test and interval both say that there is a change."""
        if self.p_holm is None or self.interval is None:
            return False
        return self.p_holm <= LEVEL and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def too_few(self) -> bool:
        """Whether not even the clearest outcome of so many units could be told from chance, and more units could."""
        return self.value is not None and (self.interval is None or (self._undecidable and not self._drawn_out))

    @property
    def too_many(self) -> bool:
        """Whether so many operating points are tested together that no number of units could show a change."""
        return self.value is not None and self.interval is not None and self._undecidable and self._drawn_out

    @property
    def _undecidable(self) -> bool:
        return self.smallest_p * self.family > LEVEL

    @property
    def _drawn_out(self) -> bool:
        """Whether the p-value is as small as the random rearrangements let any become."""
        return self.smallest_p <= 1 / (1 + SWAPS)


def change(metric: Metric, a: Units, b: Units, *, paired: bool, differing: int | None = None, seed: int = 0) -> Change:
    """Compare a number between two runs.

    Args:
        metric: which.
        a: its units in A (:func:`reports.metrics.units.units_of`).
        b: its units in B; with ``paired``, under the same keys.
        paired: keys name the same prompts.
        differing: of paired scores: prompts that differ; by default, units that do.
        seed: decides resampling and swaps, so that a report made twice says the same.
    """
    before, after = list(a.values()), [b[key] for key in (a if paired else b)]
    if not before or not after or not all(map(all_plausible, chain(before, after))):
        reason = "a number that is not finite" if before and after else UNMEASURED
        return Change(metric, paired=paired, reason=reason)
    levels = levels_of(metric, before, after)
    one, other = (float(levels.drawn(side, np.ones((1, n)))[0]) for side, n in enumerate((len(before), len(after))))
    if not all_plausible((one, other)):
        reason = "it would not be a finite number in both"
        return Change(metric, plausible(one), plausible(other), paired=paired, reason=reason)
    found = Change(
        metric, one, other, other - one, plausible(other / one - 1) if one else None, units=len(before),
        prompts=len(frozenset().union(*a)), paired=paired,
    )  # fmt: skip
    n = min(len(before), len(after))
    if n < needed_units(metric):
        what = "prompts" if all(len(key) == 1 for key in a) else "blocks of prompts"
        needed = f"an interval needs {needed_units(metric)} {what}, there are {n}"
        return replace(found, reason=needed, no_interval=NoInterval.FEW_PAIRS)
    if metric.kind == "score":
        fewest = min(len(frozenset[str]().union(*side)) for side in (a, b))
        if fewest < MINIMUM_SAMPLES:
            needed = f"a score's interval needs {MINIMUM_SAMPLES} prompts, there are {fewest}"
            return replace(found, reason=needed, no_interval=NoInterval.FEW_SAMPLES)
        differing = differing if differing is not None else sum(a[key] != b.get(key) for key in a)
        if paired and differing < MINIMUM_DIFFERING:
            needed = f"a score's interval needs {MINIMUM_DIFFERING} prompts that differ, there are {differing}"
            return replace(found, reason=needed, no_interval=NoInterval.FEW_DIFFERING)
    absolute, relative = (
        ends if ends is not None and all_plausible(ends) else None
        for ends in levels.intervals(paired=paired, seed=seed)
    )
    if paired and metric.percentile == 50 and all(value > 0 for row in (*before, *after) for value in row):
        p: float | None = _p_of_log_ratios(before, after, seed)
    else:
        p = _p(levels, (one, other), (len(before), len(after)), paired, seed)
    smallest = smallest_p(n) if paired else smallest_deal_p(len(before), len(after))
    return replace(
        found, absolute_interval=absolute, relative_interval=relative, p=p, p_holm=p, smallest_p=smallest
    )  # fmt: skip


def level_of_both(metric: Metric, units: Units) -> Change:
    """Return a number that belongs to both runs together (their agreement) with its interval.

    Where it is the same in every unit the interval is that one number, as it is for equal completions.
    """
    pairs = [Pair(*row) for row in units.values()]
    level = ratio(sum(pair.baseline for pair in pairs), sum(pair.other for pair in pairs))
    if level is None:
        return Change(metric, reason="no token in both")
    found = Change(metric, absolute=level, units=len(pairs), prompts=len(frozenset().union(*units)))
    if len(pairs) < needed_units(metric):
        return replace(found, reason=f"an interval needs {needed_units(metric)} prompts, there are {len(pairs)}")
    return replace(found, absolute_interval=known(share_bounds(pairs)) or (level, level))


def corrected(family: list[Change]) -> list[Change]:
    """Return the changes of one metric at the operating points of a task with Holm's correction made."""
    tested = sum(one.p is not None for one in family)
    p_values = holm([one.p for one in family])
    return [replace(one, p_holm=p, family=max(1, tested)) for one, p in zip(family, p_values, strict=True)]


def _p(levels: Levels, observed: tuple[float, float], units: tuple[int, int], paired: bool, seed: int) -> float | None:
    """Return the two-sided p-value of the difference of levels."""
    difference = abs(observed[1] - observed[0])
    at_least = difference - 1e-9 * (difference + abs(observed[0]))  # two ways of adding up differ by rounding

    def size(chosen: Floats) -> Floats:
        one, other = levels.rearranged(chosen, paired=paired)
        return np.abs(other - one)

    return swap_p(size, at_least, units[0], seed=seed) if paired else deal_p(size, at_least, *units, seed=seed)


def _p_of_log_ratios(a: Rows, b: Rows, seed: int) -> float:
    """Return the p-value for a median, paired: the same swaps; the statistic is the mean log ratio.

    The difference of two medians hangs on the few prompts in the middle, so that swapping pairs hardly ever shows even
    a change that every single pair shows.
    """
    p = sign_flip_p([_mean_log(after) - _mean_log(before) for before, after in zip(a, b, strict=True)], seed=seed)
    assert p is not None  # there are enough pairs for an interval of a median
    return p


def _mean_log(row: tuple[float, ...]) -> float:
    return math.fsum(map(math.log, row)) / len(row)


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
        """Return the levels of A (0) or B (1), ``[choices]``, when its units were drawn ``[choices, units]`` times."""
        return _rates(counts @ self._tables[side])

    def intervals(self, *, paired: bool, seed: int) -> Intervals:
        """Return the 95 % intervals of B − A and of B / A − 1, ``None`` where there is none; nothing is drawn."""
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
        """Return the levels in A and in B after a rearrangement.

        Args:
            chosen: paired, 1 where a pair is swapped, ``[choices, pairs]``; else 1 where a unit goes to A,
                ``[choices, units of A, then of B]``.
            paired: which of the two.
        """
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
        self._sorted = []
        for rows in (a, b):
            flat = np.array([value for row in rows for value in row], dtype=np.float64)
            units = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
            order = np.argsort(flat, kind="stable")
            self._sorted.append((flat[order], units[order]))
        values = np.concatenate([side[0] for side in self._sorted])
        order = np.argsort(values, kind="stable")
        self._together = values[order]
        self._units = np.concatenate([side[1] for side in self._sorted])[order]
        self._in_b = order >= len(self._sorted[0][0])
        self._offset, self._units_of_b = len(a), len(b)

    def drawn(self, side: int, counts: Floats) -> Floats:
        """As :meth:`Rates.drawn`."""
        values, units = self._sorted[side]
        return _at(values, np.cumsum(counts.astype(np.int32)[:, units], axis=1, dtype=np.int32), self._percent)

    def intervals(self, *, paired: bool, seed: int) -> Intervals:
        """As :meth:`Rates.intervals`; by resampling."""
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
        """As :meth:`Rates.rearranged`."""
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


def _at(values: Floats, reached: NDArray[np.int32], percent: float) -> Floats:
    """The percentile of sorted values of which so many were ``reached`` up to each, ``[choices, values]``."""
    place = (reached[:, -1] - 1) * (percent / 100)
    low, high = (
        np.count_nonzero(reached <= edge[:, None], axis=1)
        for edge in (np.floor(place).astype(np.int32), np.ceil(place).astype(np.int32))
    )
    found: Floats = values[low] + (place - np.floor(place)) * (values[high] - values[low])
    return found


Levels: TypeAlias = Rates | Percentiles
"""The level of one number in A and in B."""


def levels_of(metric: Metric, a: Rows, b: Rows) -> Levels:
    """Return a metric's levels from its units' rows in A and in B (:data:`reports.metrics.point.Units`)."""
    if metric.percentile is not None:
        return Percentiles(a, b, metric.percentile)
    return Rates(a, b, sized_by_costs=metric.is_cost)
