"""The change of one number from A to B: bootstrap interval and permutation test, paired or not.

The level of a number is a rate (totals over totals), a ratio of two rates, or a percentile over all repeats. Paired,
prompts are resampled together and the test swaps the runs of whole prompts; unpaired, each run is resampled by itself
and the test deals the units out anew. The statistic of the test is the difference of the levels, but for paired
medians: there it is the mean log ratio of the pairs (:func:`_p_of_log_ratios`). Up to ``EXACT_PAIRS`` pairs every swap
is counted. The interval is the percentile interval that :func:`reports.statistics.intervals.replicate_interval` widens
for few units. Prompts are what varies in it: that another day, or another process, is slower or faster is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from reports.comparing.metrics import Metric
from reports.comparing.units import Units
from reports.statistics.intervals import replicate_interval
from reports.statistics.significance import EXACT_PAIRS, LEVEL, holm, sign_flip_p
from reports.statistics.significance import smallest_p as lowest_p

__all__ = ["Change", "change", "corrected", "level_of_both"]

Floats: TypeAlias = NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]

RESAMPLES = 2_000
SWAPS = 1_999
_CHUNK = 2_000_000  # numbers in use at once: 16 MB


@dataclass(frozen=True, slots=True)
class Change:
    """One number in A and in B.

    Attributes:
        metric: which.
        a, b: levels, on the units compared.
        absolute, relative: b − a, and b over a − 1. For the agreement, its level and ``None``.
        absolute_interval, relative_interval: bootstrap 95 %.
        p: of a permutation test of "no change". p_holm: corrected over the operating points of a task.
        units: independent units in A; in B there are as many where they are paired.
        paired: compared prompt by prompt.
        reason: why there is no change, or no interval; empty where there is one.
        source: of an energy.
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
    paired: bool = True
    reason: str = ""
    source: str = ""
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
    def distinguishable(self) -> bool:
        """Whether test and interval both say that there is a change."""
        if self.p_holm is None or self.interval is None:
            return False
        return self.p_holm <= LEVEL and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def too_few(self) -> bool:
        """Whether not even the clearest outcome of so many units could be told from chance."""
        return self.value is not None and (self.interval is None or self.smallest_p * self.family > LEVEL)


def change(metric: Metric, a: Units, b: Units, *, paired: bool, seed: int = 0) -> Change:
    """Compare a number between two runs.

    Args:
        metric: which.
        a: its units in A (:func:`reports.comparing.units.units_of`).
        b: its units in B; with ``paired``, under the same keys.
        paired: keys name the same prompts.
        seed: decides resampling and swaps, so that a report made twice says the same.
    """
    width = max((len(row) for units in (a, b) for row in units.values()), default=1)
    before = _table([a[key] for key in a], width)
    after = _table([b[key] for key in (a if paired else b)], width)
    level = _level(metric, width)
    if not len(before) or not len(after):
        return Change(metric, paired=paired, reason="not measured in both")
    one, other = float(level(before[None])[0]), float(level(after[None])[0])
    found = Change(
        metric, one, other, other - one, other / one - 1 if one else None, units=len(before), paired=paired,
    )  # fmt: skip
    n = min(len(before), len(after))
    if n < metric.needed:
        what = "prompts" if all(len(key) == 1 for key in a) else "blocks of prompts"
        return replace(found, reason=f"an interval needs {metric.needed} {what}, there are {n}")
    generator = np.random.default_rng(seed)
    levels = _resampled(level, before, after, paired, generator)
    absolute = replicate_interval(levels[1] - levels[0], n)
    positive = bool(np.all(levels[0] > 0))
    relative = replicate_interval(levels[1] / levels[0] - 1, n) if positive else None
    if paired and metric.percentile == 50 and bool(np.nanmin(np.stack([before, after])) > 0):
        p, smallest = _p_of_log_ratios(before, after)
    else:
        p, smallest = _p(level, before, after, paired, generator)
    return replace(
        found, absolute_interval=absolute, relative_interval=relative, p=p, p_holm=p, smallest_p=smallest
    )  # fmt: skip


def level_of_both(metric: Metric, units: Units, *, seed: int = 0) -> Change:
    """Return a number that belongs to both runs together (their agreement) with its interval."""
    table = _table(list(units.values()), 2)
    if not len(table) or not table[:, 1].sum():
        return Change(metric, reason="no token in both")
    level = _level(metric, 2)
    found = Change(metric, absolute=float(level(table[None])[0]), units=len(table))
    if len(table) < metric.needed:
        return replace(found, reason=f"an interval needs {metric.needed} prompts, there are {len(table)}")
    generator = np.random.default_rng(seed)
    levels = np.concatenate([level(table[draws]) for draws in _draws(len(table), 2, generator)])
    return replace(found, absolute_interval=replicate_interval(levels, len(table)))


def corrected(family: list[Change]) -> list[Change]:
    """Return the changes of one metric at the operating points of a task with Holm's correction made."""
    tested = sum(one.p is not None for one in family)
    p_values = holm([one.p for one in family])
    return [replace(one, p_holm=p, family=max(1, tested)) for one, p in zip(family, p_values, strict=True)]


def _table(rows: list[tuple[float, ...]], width: int) -> Floats:
    padded = [[*row, *([np.nan] * (width - len(row)))] for row in rows]
    return np.array(padded, dtype=np.float64).reshape(len(rows), width)


def _level(metric: Metric, width: int) -> Callable[[Floats], Floats]:
    """Return what makes levels ``[sets]`` of rows ``[sets, units, columns]``."""
    percent = metric.percentile
    if percent is not None:

        def percentile(rows: Floats) -> Floats:
            flat = rows.reshape(len(rows), -1)
            ragged = bool(np.isnan(flat).any())
            found: Floats = (np.nanpercentile if ragged else np.percentile)(flat, percent, axis=1)
            return found

        return percentile

    def rate(rows: Floats) -> Floats:
        totals = rows.sum(axis=1)
        first: Floats = totals[:, 0] / totals[:, 1]
        return first if width == 2 else first / (totals[:, 2] / totals[:, 3])

    return rate


def _draws(n: int, columns: int, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    step = max(1, _CHUNK // (n * columns))
    for start in range(0, RESAMPLES, step):
        yield generator.integers(0, n, (min(step, RESAMPLES - start), n))


def _resampled(
    level: Callable[[Floats], Floats], a: Floats, b: Floats, paired: bool, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    if paired:
        both = [(level(a[draws]), level(b[draws])) for draws in _draws(len(a), a.shape[1], generator)]
        return np.concatenate([one for one, _ in both]), np.concatenate([other for _, other in both])
    one, other = (
        np.concatenate([level(table[draws]) for draws in _draws(len(table), table.shape[1], generator)])
        for table in (a, b)
    )
    return one, other


def _p(
    level: Callable[[Floats], Floats], a: Floats, b: Floats, paired: bool, generator: np.random.Generator
) -> tuple[float, float]:
    """Return the two-sided p-value of the difference of levels, and the smallest that could have come out."""
    observed = abs(float(level(b[None])[0] - level(a[None])[0]))
    slack = 1e-9 * (observed + abs(float(level(a[None])[0])))
    exact = paired and len(a) <= EXACT_PAIRS
    extreme = drawn = 0
    for one, other in _swapped(a, b, generator) if paired else _dealt(a, b, generator):
        extreme += int(np.count_nonzero(np.abs(level(other) - level(one)) >= observed - slack))
        drawn += len(one)
    if exact:
        return extreme / drawn, 1 / drawn
    return (1 + extreme) / (1 + drawn), 1 / (1 + SWAPS)


def _p_of_log_ratios(a: Floats, b: Floats) -> tuple[float, float]:
    """Return the p-value for a median, paired: the same swaps; the statistic is the mean log ratio.

    The difference of two medians hangs on the few prompts in the middle, so that swapping pairs hardly ever shows even
    a change that every single pair shows.
    """
    p = sign_flip_p(list(np.nanmean(np.log(b), axis=1) - np.nanmean(np.log(a), axis=1)))
    assert p is not None  # there are enough pairs for an interval of a median
    return p, lowest_p(len(a))


def _swapped(a: Floats, b: Floats, generator: np.random.Generator) -> Iterator[tuple[Floats, Floats]]:
    n = len(a)
    if n <= EXACT_PAIRS:  # the last pair is never swapped: the test is two-sided
        every = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1
        yield _chosen(every.astype(bool), a, b)
        return
    step = max(1, _CHUNK // (n * a.shape[1]))
    for start in range(0, SWAPS, step):
        yield _chosen(generator.random((min(step, SWAPS - start), n)) < 0.5, a, b)


def _chosen(swap: NDArray[np.bool_], a: Floats, b: Floats) -> tuple[Floats, Floats]:
    where = swap[:, :, None]
    return np.where(where, b, a), np.where(where, a, b)


def _dealt(a: Floats, b: Floats, generator: np.random.Generator) -> Iterator[tuple[Floats, Floats]]:
    together = np.concatenate([a, b])
    step = max(1, _CHUNK // (len(together) * a.shape[1]))
    for start in range(0, SWAPS, step):
        order = generator.random((min(step, SWAPS - start), len(together))).argsort(axis=1)
        dealt = together[order]
        yield dealt[:, : len(a)], dealt[:, len(a) :]
