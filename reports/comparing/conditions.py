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
from dataclasses import dataclass
from typing import Literal, TypeAlias

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
Outcome: TypeAlias = Literal["holds", "perhaps", "passed", "unknown"]
"""``perhaps``: the estimate is beyond the threshold, the interval is not."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition; ``threshold`` is a fraction when ``relative``, ``where`` empty for all operating points."""

    text: str
    metric: Metric
    sign: str
    threshold: float
    relative: bool
    where: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of a condition at one operating point, or nowhere, and what was found in words."""

    condition: Condition
    task: str
    point: str
    outcome: Outcome
    about: str

    @property
    def words(self) -> str:
        """One line: condition, place, what was found."""
        what, _, where = (part.strip() for part in self.condition.text.partition("@"))
        place = f" at {self.task}, {self.point}" if self.point else f" @ {where}" if where else ""
        return f"{what}{place}: {self.about}"


def parse_condition(text: str, scores: Iterable[str] = ()) -> Condition:
    """Read a condition, also on scores of these names that the runs recorded."""
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
    """Judge a condition wherever it applies; a ``ConfigError`` where it names a point that was not compared."""
    where, chosen = condition.where, []
    for point in points:
        named = f"{point.task}/", f"{point.task}/{point.a}", f"{point.task}/{point.name}"
        if not where or where in (point.a, point.b, point.name, *named):
            chosen.append((point, point.of(condition.metric)))
    if not chosen:
        names = ", ".join(dict.fromkeys(f"{point.task}/{point.name}" for point in points))
        raise ConfigError(f"--fail-if '{condition.text}': '{where}' was not compared. Compared: {names}.")
    judged = [
        Judgement(condition, point.task, point.name, *_judged(condition, one)) for point, one in chosen if one.applies
    ]
    return judged or [Judgement(condition, "", "", "unknown", f"cannot be judged: {chosen[0][1].reason}.")]


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


def _judged(condition: Condition, one: Change) -> tuple[Outcome, str]:
    value = one.relative if condition.relative else one.absolute
    interval = one.relative_interval if condition.relative else one.absolute_interval
    beyond = _SIGNS[condition.sign]
    number, scale = _form(condition)
    if value is None or not one.measured or interval is None or not all(map(math.isfinite, interval)):
        alike = one.measured and one.no_interval is NoInterval.FEW_DIFFERING
        if value is not None and alike and not beyond(value, condition.threshold):
            return "passed", f"does not hold: {Estimate(value=value).text(number, None, scale)}; {one.reason}."
        why = "A has 0, which nothing is relative to" if value is None else "there is no interval"
        why = why if one.measured else f"energy is an {one.source}, no measurement"
        return "unknown", f"cannot be judged: {one.reason or why}."
    text = Estimate.of(value, interval).text(number, None, scale)
    if all(beyond(bound, condition.threshold) for bound in interval):
        return "holds", f"holds: {text}."
    if beyond(value, condition.threshold):
        return "perhaps", f"perhaps: {text}; the interval reaches the threshold, so this fails nothing."
    return "passed", f"does not hold: {text}."


def _form(condition: Condition) -> tuple[str, float]:
    """Return how a change is written, and what it is multiplied by."""
    if condition.relative:
        return "{:+.1f} %", 100
    if condition.metric is AGREEMENT:
        return "{:.3f}", 1
    unit = condition.metric.unit
    return f"{{:+.4g}}{f' {unit}' if unit not in ('', '×') else ''}", 1
