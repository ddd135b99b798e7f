"""The change of one number from A to B: interval and permutation test, paired or not.

The level of a number is a rate (totals over totals), a ratio of two rates, or a percentile over all repeats
(:mod:`reports.comparing.levels`). Paired, the test swaps the runs of whole units, unpaired it deals them out anew
(:mod:`reports.statistics.significance`). The statistic of the test is the difference of the levels, but for paired
medians: there it is the mean log ratio of the pairs (:func:`_p_of_log_ratios`). Prompts, or blocks of them, are what
varies in an interval: that another day, or another process, is slower or faster is not in it. A score of few prompts,
or one that few prompts differ in, has neither interval nor test (:func:`reports.statistics.intervals.score_interval`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.contracts import Metric
from harness.records.estimate import Interval, NoInterval
from reports.comparing.levels import Levels, Rows, levels_of
from reports.comparing.metrics import needed_units
from reports.metrics.units import Units
from reports.statistics.intervals import MINIMUM_DIFFERING, MINIMUM_SAMPLES, Pair, known, ratio, share_bounds
from reports.statistics.plausible import all_plausible, plausible
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

__all__ = ["UNMEASURED", "Change", "change", "corrected", "level_of_both"]

Floats: TypeAlias = NDArray[np.float64]
UNMEASURED = "not measured in both"


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
