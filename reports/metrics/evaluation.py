"""Evaluates metrics at the operating points of one table; those compared with full depth are tested together.

Each comparison has a t interval (:mod:`reports.statistics.intervals`) and the p-value of a paired permutation test
(:mod:`reports.statistics.significance`), both over blocks of samples; without an interval there is no test. A family is
one metric at the tested operating points of one table: Holm's correction keeps the chance of any false alarm in it at
5 %, and nothing corrects across metrics, tables or runs. A difference is said to be there only when its corrected
p-value is at most 0.05 **and** its interval excludes "no difference".
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeVar

from harness.contracts import Metric
from harness.errors import RegistryError
from harness.records.estimate import Estimate, NoInterval
from harness.registry import METRICS
from reports.metrics.point import Point
from reports.statistics.intervals import (
    Pair,
    mean,
    mean_interval,
    paired_ratio,
    percentile,
    percentile_interval,
    ratio_interval,
    score_interval,
)
from reports.statistics.plausible import all_plausible, numbers_of
from reports.statistics.significance import LEVEL, holm, ratio_p, sign_flip_p, smallest_p
from reports.summary.measured import Measured, is_measured, total

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One metric of one operating point; ``family`` is how many were tested together where it is compared."""

    metric: Metric
    estimate: Estimate | None = None
    family: int = 0

    @property
    def distinguishable(self) -> bool:
        """Whether test and interval both say that there is a difference."""
        return is_distinguishable(self.metric, self.estimate)

    @property
    def apart(self) -> bool:
        """Whether the interval excludes no difference, whatever the test says."""
        return excludes_no_difference(self.metric, self.estimate)

    @property
    def too_few(self) -> bool:
        """Whether not even the clearest outcome of so many pairs could be told from chance in this family."""
        if self.estimate is None or self.distinguishable:
            return False
        return self.estimate.no_interval is not None or smallest_p(self.estimate.n or 0) * self.family > LEVEL


def evaluate(
    metrics: Sequence[Metric], points: Sequence[Point], left_out: Counter[str]
) -> list[dict[Metric, Evaluated]]:
    """Return the metrics of each operating point of one table, comparisons corrected.

    A plug-in's metric that fails is missing. ``left_out`` counts by metric the numbers that cannot be true: of samples,
    pairs or differences, or the metric's own; they are missing.
    """
    found: list[dict[Metric, Evaluated]] = [{} for _ in points]
    for metric in metrics:
        column: list[Estimate | None] = []
        for point in points:
            made = None
            with METRICS.leaving_out(metric.name) if metric.name in METRICS else nullcontext():
                made = _made(metric, point, left_out)
            column.append(made)
        p_values = [None if one is None else one.p for one in column] if metric.paired else [None] * len(column)
        tested = sum(p is not None for p in p_values)
        for at, one, p in zip(found, column, holm(p_values), strict=True):
            at[metric] = Evaluated(metric, replace(one, p_holm=p) if one and p is not None else one, tested)
    return found


def is_distinguishable(metric: Metric, estimate: Estimate | None) -> bool:
    """Whether a comparison with full depth passed; false for a metric that is none."""
    if estimate is None or estimate.p_holm is None:
        return False
    return estimate.p_holm <= LEVEL and excludes_no_difference(metric, estimate)


def excludes_no_difference(metric: Metric, estimate: Estimate | None) -> bool:
    """Whether the interval of a comparison, by itself, says that there is a difference."""
    if metric.paired is None or estimate is None or estimate.interval is None:
        return False
    low, high = estimate.interval
    return not low <= (1.0 if metric.paired == "ratio" else 0.0) <= high


def can_tell(metric: Metric, estimates: Sequence[Estimate | None]) -> bool:
    """Whether a family has so many pairs that its clearest outcome is told from chance.

    Always of a metric that is not compared with full depth.
    """
    tested = [one.n for one in estimates if one is not None and one.p is not None and one.n]
    could = any(smallest_p(pairs) * len(tested) <= LEVEL for pairs in tested)
    return metric.paired is None or could or any(is_distinguishable(metric, one) for one in estimates)


def _usable(metric: Metric, values: Iterable[_Value], left_out: Counter[str]) -> list[_Value]:
    """Return the values (pairs, entries of a mapping, numbers) that can be true, and count the others."""
    found = list(values)
    kept = [one for one in found if all_plausible(numbers_of(astuple(one) if isinstance(one, Pair) else one))]
    left_out.update({metric.name: len(found) - len(kept)})
    return kept


def _made(metric: Metric, point: Point, left_out: Counter[str]) -> Estimate | None:
    if not point.can_have(metric):
        return None
    found: Any
    if metric.of_sample is not None:
        read = (metric.of_sample(sample) for sample in point.samples)
        values = _usable(metric, (value for value in read if value is not None), left_out)
        found = mean(values) if metric.percentile is None else percentile(values, metric.percentile)
        if metric.interval and metric.percentile is not None and found is not None:
            return _percentile(metric, metric.percentile, point, found)
    else:
        assert metric.compute is not None
        if metric.paired == "difference" and point.cell is point.reference(metric.against):
            return None
        found = metric.compute(point)
        if metric.paired:
            made = _differences if metric.paired == "difference" else _ratio
            return made(metric, point, found, left_out)
    if found is None or isinstance(found, Estimate):
        return found
    if not isinstance(found, int | float):
        raise RegistryError(f"the metric '{metric.name}' yields {found!r}, which is no number and no estimate.")
    return Estimate(value=found) if _usable(metric, [found], left_out) else None


def _percentile(metric: Metric, percent: float, point: Point, found: float) -> Estimate:
    units: dict[int, list[float]] = defaultdict(list)
    for sample in point.samples:
        value = metric.of_sample(sample) if metric.of_sample else None
        if value is not None and all_plausible([value]):
            units[point.cell.unit(sample)].append(value)
    return Estimate.of(found, percentile_interval(list(units.values()), percent), n=len(units))


def _ratio(metric: Metric, point: Point, found: list[Pair] | None, left_out: Counter[str]) -> Estimate | None:
    """The ratio of paired costs; full depth itself has 1 by definition, without interval or test."""
    reference = point.reference(metric.against)
    if point.cell is reference:
        return Estimate(value=1.0) if point.samples and found is not None else None
    pairs = _usable(metric, found or [], left_out)
    value = paired_ratio(pairs)
    if value is None or reference is None:
        return None
    interval = _no_evidence(metric, point, reference, value) or ratio_interval(pairs)
    p = ratio_p(pairs) if isinstance(interval, tuple) else None
    return Estimate.of(value, interval, p=p, n=len(pairs))


def _no_evidence(metric: Metric, point: Point, reference: Measured, value: float) -> NoInterval | None:
    """Say why a ratio of costs says nothing of the operating point, however many pairs it has."""
    if not metric.is_cost:
        return None
    if point.cell.disturbed or reference.disturbed:
        return NoInterval.FLAGGED
    if metric.kind == "energy" and not is_measured(total(point.windows)[0], point.manifest.meter):
        return NoInterval.ESTIMATED
    return NoInterval.SAME_WORK if value > 1 and point.does_the_work_of(reference) else None


def _differences(
    metric: Metric, point: Point, found: Mapping[str, float] | None, left_out: Counter[str]
) -> Estimate | None:
    """The mean difference of samples; a score of the same tokens has neither interval nor test."""
    differences = dict(_usable(metric, (found or {}).items(), left_out))
    value, units = mean(differences.values()), point.cell.by_block(differences)
    if value is None:
        return None
    if metric.kind == "score" and point.is_exact:
        return Estimate(value=value, n=len(units), samples=len(differences), differing=0)
    interval = score_interval(units) if metric.kind == "score" else mean_interval(units)
    p = sign_flip_p([math.fsum(unit) for unit in units]) if isinstance(interval, tuple) else None
    differing = sum(difference != 0 for difference in differences.values())
    return Estimate.of(value, interval, p=p, n=len(units), samples=len(differences), differing=differing)
