"""The change of one number from A to B, paired by prompts or blocks of them: levels, intervals and permutation test.

A level is a rate (totals over totals), a ratio of two rates, or a percentile over all repeats. The change of a rate has
the t interval of its linearisation, that of a percentile the bootstrap's. The statistic of the test is the difference
of the levels; of medians, where that hangs on the few prompts in the middle, the mean log ratio of the pairs.
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
from reports.statistics.significance import LEVEL, holm, sign_flip_p, smallest_p, swap_p

Floats: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = Sequence[tuple[float, ...]]

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
    """Return the metrics of a comparison in the order of tables, scores (also those of these names) first."""
    found = [metric for metric in all_metrics(scores) if metric.units or metric.of_sample]
    judged = [metric for metric in found if metric.kind == "score"]
    return (*judged, AGREEMENT, *(metric for metric in found if metric.kind != "score"))


def find_metric(name: str, scores: Iterable[str] = ()) -> Metric:
    """Return a metric by name, or by its name without the unit: ``latency_p50`` is ``latency_p50_s``."""
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
    """One number in A and in B, on the same prompts; ``relative`` is b over a − 1, p of the test of "no change".

    ``reason`` says why there is no change, or no interval, or what else it rests on than on prompts paired one by one.
    """

    metric: Metric
    a: float | None = None
    b: float | None = None
    absolute: float | None = None
    relative: float | None = None
    absolute_interval: Interval | None = None
    relative_interval: Interval | None = None
    p: float | None = None
    p_holm: float | None = None  # corrected over the operating points of a task
    units: int = 0  # independent: prompts, or blocks of them
    prompts: int = 0
    paired: bool = True
    reason: str = ""
    no_interval: NoInterval | None = None
    source: str = ""  # of an energy
    measured: bool = True  # by a sensor, in both runs
    family: int = 1  # operating points tested together
    applies: bool = True  # false of full depth against full depth

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
        """Whether not even the clearest outcome of so many units could be told from chance in this family."""
        return self.value is not None and (self.interval is None or smallest_p(self.units) * self.family > LEVEL)


def change(metric: Metric, a: Units, b: Units, *, differing: int | None = None, seed: int = 0) -> Change:
    """Compare a number between two runs whose units have the same keys.

    Args:
        metric: which.
        a: its units in A (:func:`reports.metrics.point.units_of`).
        b: its units in B.
        differing: of scores: prompts that differ; by default, units that do.
        seed: decides resampling and swaps, so that a report made twice says the same.
    """
    before, after = list(a.values()), [b[key] for key in a]
    if not before:
        return Change(metric, paired=False, reason=UNMEASURED)
    if not all(map(all_plausible, chain(before, after))):
        return Change(metric, reason="a number that is not finite")
    levels = levels_of(metric, before, after)
    one, other = levels.both
    if not all_plausible((one, other)):
        return Change(metric, plausible(one), plausible(other), reason="it would not be a finite number in both")
    relative = plausible(other / one - 1) if one else None
    found = Change(metric, one, other, other - one, relative, units=len(a), prompts=len(frozenset().union(*a)))
    lacking = _lacking(metric, a, b, differing)
    if lacking is not None:
        return replace(found, reason=lacking[0], no_interval=lacking[1])
    intervals = (pair if pair is not None and all_plausible(pair) else None for pair in levels.intervals(seed))
    absolute, relative_interval = intervals
    if metric.percentile == 50 and all(value > 0 for row in (*before, *after) for value in row):
        p = sign_flip_p(
            [_mean_log(there) - _mean_log(here) for here, there in zip(before, after, strict=True)], seed=seed
        )
    else:
        difference = abs(other - one)
        at_least = difference - 1e-9 * (difference + abs(one))  # two ways of adding up differ by rounding
        p = swap_p(levels.swapped, at_least, len(a), seed=seed)
    return replace(found, absolute_interval=absolute, relative_interval=relative_interval, p=p, p_holm=p)


def _lacking(metric: Metric, a: Units, b: Units, differing: int | None) -> tuple[str, NoInterval] | None:
    """Say why there are too few units for an interval; ``None`` where there are enough."""
    n, needed, prompts = len(a), needed_units(metric), len(frozenset().union(*a))
    if n < needed:
        what = "prompts" if all(len(key) == 1 for key in a) else "blocks of prompts"
        return f"an interval needs {needed} {what}, there are {n}", NoInterval.FEW_PAIRS
    if metric.kind == "score" and prompts < MINIMUM_SAMPLES:
        return f"a score's interval needs {MINIMUM_SAMPLES} prompts, there are {prompts}", NoInterval.FEW_SAMPLES
    differing = differing if differing is not None else sum(a[key] != b[key] for key in a)
    if metric.kind == "score" and differing < MINIMUM_DIFFERING:
        few = f"a score's interval needs {MINIMUM_DIFFERING} prompts that differ, there are {differing}"
        return few, NoInterval.FEW_DIFFERING
    return None


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


def _mean_log(row: tuple[float, ...]) -> float:
    return math.fsum(map(math.log, row)) / len(row)


class Rates:
    """Totals over totals, or a ratio of two such: rows of two or four numbers, each above its line and below it.

    A unit is as large as what stands above the line of costs, and else as what stands below.
    """

    def __init__(self, a: Rows, b: Rows, *, sized_by_costs: bool) -> None:
        self._a, self._b = (np.asarray(rows, dtype=np.float64) for rows in (a, b))
        self._size = 0 if sized_by_costs else 1

    @property
    def both(self) -> tuple[float, float]:
        """The levels of A and of B."""
        return float(_rates(self._a.sum(0))), float(_rates(self._b.sum(0)))

    def intervals(self, seed: int) -> tuple[Interval | None, Interval | None]:
        """Return the 95 % intervals of B − A and of B / A − 1, ``None`` where there is none."""
        if any(np.any(table.sum(0)[1:] <= 0) for table in (self._a, self._b)):
            return None, None
        (a, moved_a, share_a), (b, moved_b, share_b) = map(self._influences, (self._a, self._b))
        share = (share_a + share_b) / 2
        half = half_width(moved_b - moved_a, share)
        absolute = b - a - half, b - a + half
        if not a > 0 < b:
            return absolute, None
        with np.errstate(over="ignore"):  # an interval without an end
            factor = float(np.exp(half_width(moved_b / b - moved_a / a, share)))
        return absolute, (b / a / factor - 1, b / a * factor - 1)

    def _influences(self, table: Floats) -> tuple[float, Floats, Floats]:
        """A level, what each unit moves it by, and each unit's share of the size."""
        totals = table.sum(0)
        level, shares = float(_rates(totals)), table[:, 1:] / totals[1:]
        moved = table[:, 0] * _rates(np.array([1.0, *totals[1:]])) - level * shares[:, 0]
        if len(totals) == 4:
            moved += level * (shares[:, 2] - shares[:, 1])
        sizes = table[:, self._size :: 2].sum(0)
        return level, moved, (table[:, self._size :: 2] / sizes).mean(1) if np.all(sizes > 0) else shares[:, 0]

    def swapped(self, swaps: Floats) -> Floats:
        """Return the difference of the levels, ``[choices]``, where pairs with a 1 change sides."""
        first = self._a.sum(0) + swaps @ (self._b - self._a)
        return np.abs(_rates(first) - _rates(self._a.sum(0) + self._b.sum(0) - first))


class Percentiles:
    """A percentile over all repeats of all units, interpolated linearly: rows of one value per repeat, of any length.

    The values of both runs are sorted once, together; a choice is how often each of them counts.
    """

    def __init__(self, a: Rows, b: Rows, percent: float) -> None:
        values = np.array(list(chain(*a, *b)), dtype=np.float64)
        order = np.argsort(values, kind="stable")
        self._percent, self._count, self._values = percent, len(a), values[order]
        self._units = np.tile(np.arange(len(a)), 2).repeat([len(row) for row in (*a, *b)])[order]
        self._in_a = (order < sum(map(len, a))).astype(np.int32)

    @property
    def both(self) -> tuple[float, float]:
        """As of :class:`Rates`."""
        return float(self._at(self._in_a[None])[0]), float(self._at(1 - self._in_a[None])[0])

    def intervals(self, seed: int) -> tuple[Interval | None, Interval | None]:
        """As of :class:`Rates`, by resampling."""
        drawn = [counts.astype(np.int32)[:, self._units] for counts in resampled(self._count, RESAMPLES, seed)]
        a, b = (np.concatenate([self._at(one * side) for one in drawn]) for side in (self._in_a, 1 - self._in_a))
        relative = replicate_interval(b / a - 1, self._count) if bool(np.all(a > 0)) else None
        return replicate_interval(b - a, self._count), relative

    def swapped(self, swaps: Floats) -> Floats:
        """As of :class:`Rates`."""
        first = swaps.astype(np.int32)[:, self._units] ^ self._in_a
        return np.abs(self._at(first) - self._at(1 - first))

    def _at(self, counts: NDArray[np.int32]) -> Floats:
        reached = np.cumsum(counts, axis=1, dtype=np.int32)
        place = (reached[:, -1] - 1) * (self._percent / 100)
        low, high = (
            self._values[np.count_nonzero(reached <= edge[:, None].astype(np.int32), axis=1)]
            for edge in (np.floor(place), np.ceil(place))
        )
        found: Floats = low + (place - np.floor(place)) * (high - low)
        return found


def _rates(totals: Floats) -> Floats:
    """Rates of totals ``[..., 2 or 4]``; not finite where nothing stands below the line."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first: Floats = totals[..., 0] / totals[..., 1]
        return first if totals.shape[-1] == 2 else first / (totals[..., 2] / totals[..., 3])


def levels_of(metric: Metric, a: Rows, b: Rows) -> Rates | Percentiles:
    """Return a metric's levels from its units' rows in A and in B (:data:`reports.metrics.point.Units`)."""
    if metric.percentile is not None:
        return Percentiles(a, b, metric.percentile)
    return Rates(a, b, sized_by_costs=metric.is_cost)
