"""Conditions that make a comparison fail: ``METRIC (>|<|>=|<=) [+-]NUMBER[%] [@ [TASK/]POINT]``.

A number with ``%`` is a relative change from A to B, one without an absolute change in the metric's unit; for the
agreement of the two runs it is the agreement itself. A condition **holds** only when the whole 95 % interval lies
beyond the threshold. When only the estimate does, it is a warning. What cannot be judged (not measured, another
machine, too few prompts) is neither passed nor failed: it is an error of its own. A score that too few prompts differ
in for an interval passes where the estimate is not beyond the threshold, so that a run with the same completions does.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.contracts import Metric
from harness.errors import ConfigError
from harness.records.estimate import Estimate, NoInterval
from reports.comparing.change import AGREEMENT, Change, find_metric
from reports.comparing.results import PointChange

_GRAMMAR = re.compile(
    r"\s*(?P<metric>[A-Za-z_]\w*)\s*(?P<sign>>=|<=|>|<)\s*(?P<number>[+\-−]?(?:\d+\.?\d*|\.\d+))\s*(?P<percent>%?)\s*"
    r"(?:@\s*(?P<where>\S.*?)\s*)?",
)
_EXAMPLE = (
    "Write METRIC, one of > < >= <=, a number, and perhaps % and @ POINT: latency_p50>+5% or edit_similarity<-0.01."
)
_SIGNS = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition.

    Attributes:
        text: as written.
        metric: what it is about.
        sign: how the change is compared with the threshold.
        threshold: change, as a fraction when ``relative``.
        relative: the number had a ``%``.
        where: operating point, ``TASK/`` before it or not; empty for all.
    """

    text: str
    metric: Metric
    sign: str
    threshold: float
    relative: bool
    where: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of a condition at one operating point.

    Attributes:
        condition: which. task, point: where; empty when it was judged nowhere.
        outcome: ``holds``, ``perhaps`` (the estimate is beyond the threshold, the interval is not), ``passed`` or
            ``unknown``.
        about: what was found, in words.
    """

    condition: Condition
    task: str
    point: str
    outcome: Literal["holds", "perhaps", "passed", "unknown"]
    about: str

    @property
    def words(self) -> str:
        """One line: condition, place, what was found."""
        what = self.condition.text.partition("@")[0].strip()
        where = (
            f" at {self.task}, {self.point}"
            if self.point
            else f" @ {self.condition.where}" * bool(self.condition.where)
        )
        return f"{what}{where}: {self.about}"


def parse_condition(text: str, scores: Iterable[str] = ()) -> Condition:
    """Read a condition.

    Args:
        text: as it was written.
        scores: names of scores that the runs recorded.

    Raises:
        ConfigError: it is none, or one that would surprise.
        UnknownNameError: unknown metric.
    """
    found = _GRAMMAR.fullmatch(text)
    if found is None:
        raise ConfigError(f"--fail-if '{text}' is no condition. {_EXAMPLE}")
    metric = find_metric(found["metric"], scores)
    number, relative = found["number"].replace("−", "-"), bool(found["percent"])
    threshold = float(number) / (100 if relative else 1)
    if metric is AGREEMENT:
        if relative or number[0] in "+-" or not 0 <= threshold <= 1:
            raise ConfigError(
                f"--fail-if '{text}': {metric.name} is a share from 0 to 1, not a change: agreement<0.99."
            )
    elif not relative and threshold != 0 and number[0] not in "+-":
        raise ConfigError(
            f"--fail-if '{text}' compares a change from A to B, which has a sign: "
            f"{metric.name}{found['sign']}+{number}, or -{number}."
        )
    return Condition(text.strip(), metric, found["sign"], threshold, relative, found["where"] or "")


def judge(condition: Condition, points: Sequence[PointChange]) -> list[Judgement]:
    """Judge a condition wherever it applies.

    Raises:
        ConfigError: it names an operating point that was not compared.
    """
    chosen = _chosen(condition, points)
    changes = [(point, point.of(condition.metric)) for point in chosen]
    judged = [_judged(condition, point, one) for point, one in changes if one.applies]
    if not judged:
        judged = [Judgement(condition, "", "", "unknown", f"cannot be judged: {changes[0][1].reason}.")]
    if condition.metric.paired:  # full depth is on one side, or on both
        words = _what_can_be(condition, chosen)
        judged = [replace(one, about=f"{one.about}{words}") if one.outcome == "unknown" else one for one in judged]
    return judged


def _what_can_be(condition: Condition, points: Sequence[PointChange]) -> str:
    """Say which metrics have an interval at all of these operating points, in a comparison like this one."""

    def has_interval(one: Change) -> bool:
        interval = one.relative_interval if condition.relative else one.absolute_interval
        return interval is not None and one.measured

    names = [
        one.metric.name for one in points[0].changes if all(has_interval(point.of(one.metric)) for point in points)
    ]
    return f" Can be judged here: {', '.join(names)}." if names else " Nothing can be judged here."


def grouped(judged: Sequence[Judgement]) -> list[tuple[str, Judgement]]:
    """Return one line per thing to say and its first judgement: what is the same at many places is said once."""
    groups: dict[tuple[str, str, str], list[Judgement]] = {}
    for one in judged:
        groups.setdefault((one.condition.text, one.outcome, one.about), []).append(one)
    lines = []
    for first, *rest in groups.values():
        more = f" (and at {len(rest)} more operating points)" if rest else ""
        lines.append((f"{first.words.removesuffix('.')}{more}.", first))
    return lines


def _chosen(condition: Condition, points: Sequence[PointChange]) -> list[PointChange]:
    where = condition.where
    if not where:
        return list(points)
    chosen = [
        point
        for point in points
        if where
        in (point.a, point.b, point.name, f"{point.task}/", f"{point.task}/{point.a}", f"{point.task}/{point.name}")
    ]
    if not chosen:
        names = ", ".join(dict.fromkeys(f"{point.task}/{point.name}" for point in points))
        raise ConfigError(f"--fail-if '{condition.text}': '{where}' was not compared. Compared: {names}.")
    return chosen


def _judged(condition: Condition, point: PointChange, one: Change) -> Judgement:
    value = one.relative if condition.relative else one.absolute
    interval = one.relative_interval if condition.relative else one.absolute_interval

    def outcome(which: Literal["holds", "perhaps", "passed", "unknown"], words: str) -> Judgement:
        return Judgement(condition, point.task, point.name, which, words)

    beyond = _SIGNS[condition.sign]
    if value is None or not one.measured or interval is None or not all(map(math.isfinite, interval)):
        alike = one.measured and one.no_interval is NoInterval.FEW_DIFFERING
        if value is not None and alike and not beyond(value, condition.threshold):
            return outcome("passed", f"does not hold: {Estimate(value=value).text(*_form(condition))}; {one.reason}.")
        return outcome("unknown", f"cannot be judged: {one.reason or _why_not(one, value)}.")
    text = Estimate.of(value, interval).text(*_form(condition))
    if all(beyond(bound, condition.threshold) for bound in interval):
        return outcome("holds", f"holds: {text}.")
    if beyond(value, condition.threshold):
        return outcome("perhaps", f"perhaps: {text}; the interval reaches the threshold, so this fails nothing.")
    return outcome("passed", f"does not hold: {text}.")


def _why_not(one: Change, value: float | None) -> str:
    if not one.measured:
        return f"energy is an {one.source}, no measurement"
    return "A has 0, which nothing is relative to" if value is None else "there is no interval"


def _form(condition: Condition) -> tuple[str, None, float]:
    """Return how a change is written: value, bounds as the value, factor."""
    if condition.relative:
        return "{:+.1f} %", None, 100
    if condition.metric is AGREEMENT:
        return "{:.3f}", None, 1
    unit = condition.metric.unit
    return f"{{:+.4g}}{f' {unit}' if unit not in ('', '×') else ''}", None, 1
