"""How an operating point compares with full depth, in words.

What is not told apart from chance is *not distinguishable*, which does not mean equal; and where so few pairs were
measured that even the clearest outcome could not pass the test, the words are *too few pairs to tell*. A difference of
scores without an interval says which of its two minima is not reached. A lossless row has full depth's tokens, so that
only its costs are compared. Which comparisons are told, and how, is part of
their metrics.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.contracts import Metric
from harness.records.estimate import Estimate, NoInterval
from reports.metrics.evaluation import Comparison
from reports.metrics.point import Point

__all__ = ["EXACT", "NOT_DISTINGUISHABLE", "TOO_FEW", "verdict"]

NOT_DISTINGUISHABLE = "not distinguishable from full depth"
TOO_FEW = "too few pairs to tell"
EXACT = "full depth's tokens"


def verdict(point: Point, comparisons: Mapping[Metric, Comparison], *, energy_measured: bool) -> str | None:
    """Say in words how an operating point compares with full depth.

    ``None`` when one has no finished sample, or when nothing is left to tell of a run that was not timed. Energy is
    named when a sensor measured it, accuracy unless the weights are random.

    Args:
        point: the operating point.
        comparisons: its own, corrected.
        energy_measured: a sensor measured its energy.
    """
    if point.is_full or not point.samples or not point.full.samples:
        return "the baseline" if point.is_full and point.samples else None
    told = [
        one
        for metric, one in comparisons.items()
        if metric.verdict is not None
        and _belongs(metric, point)
        and one.estimate is not None
        and (metric.always_told or one.distinguishable)
        and (metric.kind != "energy" or energy_measured)
        and (metric.kind != "score" or point.model.weights != "random")
    ]
    if point.is_exact:
        costs = [one for one in told if one.metric.kind != "score"]
        return "; ".join([EXACT, *(_words(one) + _against(one.metric, point) for one in costs)])
    if not told and not point.manifest.timed:
        return None
    if all(one.too_few for one in told):
        reasons = {_too_few(one.estimate) for one in told if one.estimate is not None}
        return reasons.pop() if len(reasons) == 1 else TOO_FEW
    if not any(one.distinguishable or one.too_few for one in told):
        return NOT_DISTINGUISHABLE
    return "; ".join(_words(one) + _against(one.metric, point) for one in told)


def _belongs(metric: Metric, point: Point) -> bool:
    """Whether a metric is told: of a ratio stated twice the first, but where it is 1 by definition the second."""
    if point.cell is point.reference(metric.against):
        return False
    return not metric.restates or point.cell is point.own_full


def _against(metric: Metric, point: Point) -> str:
    """Name the full depth that a metric is held against where it is not the run's first."""
    full = point.reference(metric.against)
    return "" if full is None or full is point.full else f" (against {full.point.name})"


def _words(one: Comparison) -> str:
    wording, found = one.metric.verdict, one.estimate
    assert wording is not None
    assert found is not None
    if not one.distinguishable:
        return f"{wording.noun}{': ' + _too_few(found) if one.too_few else ' not distinguishable'}"
    good = (found.value > 0) is (one.metric.better != "lower")
    numbers, number, unit = [found.value, *(found.interval or ())], "{:.3f}", ""
    if one.metric.paired == "ratio":
        numbers = [100 * (1 - 1 / ratio if wording.saving else ratio - 1) for ratio in numbers]
        good, number, unit = numbers[0] > 0, "{:.1f}" if abs(numbers[0]) < 10 else "{:.0f}", " %"
    size, *ends = map(abs, numbers)
    low, high = sorted(ends)
    words = (wording.better if good else wording.worse).format(number.format(size) + unit)
    return f"{words} {Estimate(value=size, low=low, high=high).brackets(number)}"


def _too_few(found: Estimate) -> str:
    reason = found.no_interval
    if reason is NoInterval.FEW_DIFFERING:
        return f"{reason} to tell ({found.differing} of {found.samples})"
    if reason is NoInterval.UNDEFINED:
        return reason
    return TOO_FEW if reason is None else f"{reason} to tell"
