"""A comparison of two runs: its operating points, what differs beside them, and what is said of both in words.

A change is named only where test and interval agree that there is one. "No distinguishable change" does not mean equal;
"too few" means that so few prompts could not have shown one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.contracts import Metric
from harness.records.conditions import Compared, Conditions
from harness.records.estimate import Estimate, NoInterval
from reports.comparing.change import Change
from reports.comparing.pairing import Matched
from reports.metrics.speedups import SPEEDUP
from reports.metrics.time import LATENCY_P50
from reports.metrics.vocabulary import EDIT_SIMILARITY
from reports.recorded import RecordedRun
from reports.statistics.plausible import all_plausible
from reports.tables.result import windows_of

NO_CHANGE = "no distinguishable change"
TOO_FEW = "too few prompts to tell"
TOO_ALIKE = "too few prompts that differ to tell"


class Difference(NamedTuple):
    """One thing that was not the same, its values short."""

    what: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class PointChange:
    """One operating point of one task in both runs; ``identical`` are completions with the same tokens, of how many."""

    task: str
    a: str
    b: str
    matched: Matched
    changes: tuple[Change, ...]
    verdict: str = ""
    baseline: bool = False  # full depth in both
    identical: tuple[int, int] = (0, 0)
    conditions: tuple[Conditions, ...] = ()

    @property
    def name(self) -> str:
        """As tables write it."""
        return self.a if self.a == self.b else f"{self.a} → {self.b}"

    @property
    def kv(self) -> str:
        """Its KV policy, or both."""
        return " → ".join(dict.fromkeys(one.kv for one in self.conditions))

    def obstacle(self, of: Compared) -> str:
        """Return why no such numbers of A and B are compared; empty where they are."""
        one, other = self.conditions
        return one.why_not_comparable(other, of) if self.matched.same else "the prompts differ"

    def of(self, metric: Metric | str) -> Change:
        """Return the change of one metric."""
        name = metric if isinstance(metric, str) else metric.name
        return next(one for one in self.changes if one.metric.name == name)


@dataclass(frozen=True, slots=True)
class RunChange:
    """Two runs compared; ``skipped`` are task, operating point and reason of what both have and was not compared."""

    a: RecordedRun
    b: RecordedRun
    differences: tuple[Difference, ...]
    points: tuple[PointChange, ...]
    skipped: tuple[tuple[str, str, str], ...]
    verdict: str
    notes: tuple[str, ...]


def verdict(point: PointChange) -> str:
    """Say in words what changed at one operating point.

    Energy is named only where a sensor measured it, and what has no words of its own only where nothing else changed.
    """
    told = (one for one in point.changes if one.measured and one.value is not None)
    known = [one for one in told if all_plausible((one.value, *(one.interval or ())))]
    worded = sorted((one for one in known if one.metric.change), key=lambda one: not one.metric.is_cost)
    changes = [_words(one) for one in worded if one.distinguishable]
    others = [one.metric.title or one.metric.term for one in known if one.distinguishable]
    if not changes and others:
        changes = [f"changed: {', '.join(others)}"]
    elif not worded:
        return "nothing could be compared"
    elif not changes:
        reasons = {_no_change(one) for one in [one for one in worded if one.metric.kind != "work"] or worded}
        changes = [next(words for words in (NoInterval.FLAGGED, NO_CHANGE, TOO_ALIKE, TOO_FEW) if words in reasons)]
    same, compared = point.identical
    if compared:
        other = f"{compared - same} of {compared} completions have other tokens"
        changes.append("every token the same" if same == compared else other)
    return "; ".join(changes)


def overall(points: Sequence[PointChange]) -> str:
    """Say in words what changed from run A to run B."""
    sentences = [
        _counted(points, "Time of requests", LATENCY_P50, ("slower", "faster")),
        _counted(points, "Against full depth of its own run", SPEEDUP, ("faster", "slower")),
        _counted(points, "Edit similarity", EDIT_SIMILARITY, ("higher", "lower")),
    ]
    compared = [point for point in points if point.identical[1]]
    if compared:
        same = sum(point.identical[0] == point.identical[1] for point in compared)
        all_of_them = same == len(compared)
        sentences.append(f"Tokens: {'all the same' if all_of_them else f'the same at {same} of {len(compared)}'}.")
    return " ".join(filter(None, sentences)) or "Nothing could be compared."


def _counted(points: Sequence[PointChange], subject: str, metric: Metric | str, words: tuple[str, str]) -> str:
    """One sentence of counts; ``words``: for a larger number, for a smaller one."""
    applicable = [one for point in points if (one := point.of(metric)).applies]
    known = [one for one in applicable if one.value is not None]
    if not known:
        reasons = list(dict.fromkeys(one.reason for one in applicable if one.reason))
        return f"{subject}: not compared ({'; '.join(reasons)})." if reasons else ""
    counts = Counter(words[(one.value or 0.0) <= 0] if one.distinguishable else _no_change(one) for one in known)
    first, *rest = [f"{word} at {counts[word]}" for word in sorted(counts, key=lambda word: word not in words)]
    tasks = " of all tasks" if len({point.task for point in points}) > 1 else ""
    noun = f"operating point{'s' if len(known) > 1 else ''}{tasks}"
    return f"{subject}: {first} of {len(known)} {noun}{''.join(f', {part}' for part in rest)}."


def _no_change(one: Change) -> str:
    """Why no change is named: none was found, or none could have been."""
    if one.no_interval is NoInterval.FLAGGED:
        return one.no_interval
    return TOO_ALIKE if one.no_interval is NoInterval.FEW_DIFFERING else TOO_FEW if one.too_few else NO_CHANGE


def _words(one: Change) -> str:
    assert one.value is not None
    assert one.interval is not None
    wording, up = one.metric.change, one.value > 0
    assert wording is not None
    good = not up if one.metric.better == "lower" else up
    low, high = sorted(map(abs, one.interval))
    size = Estimate(value=abs(one.value), low=low, high=high)
    if one.metric.is_cost or one.metric.form == "percent":
        amount = size.text(f"{{:.1f}} {'%' if one.metric.is_cost else 'percentage points'}", "{:.1f}", 100)
    else:
        amount = size.text("{:.3f}")
    return (wording.better if good else wording.worse).format(amount)


def notes(a: RecordedRun, b: RecordedRun, points: Sequence[PointChange], *, interleaved: bool) -> Iterator[str]:
    """Yield one sentence per thing that a reader must know; ``interleaved``: both sides are of one run."""
    for letter, run in (("A", a), ("B", b)) if not interleaved else (("The run", a),):
        if run.state:
            yield f"{letter} is {run.state}; what both finished is compared."
        if any(row.flagged for row in run.summary.rows):
            yield f"{letter}: of its windows {windows_of(run.summary.rows)}."
    yield from dict.fromkeys(f"{point.task}: {point.matched.words}." for point in points)
    if any(point.matched.same and not point.matched.same_reference for point in points):
        yield "Scores are not compared: the prompts are the same and the references are not."
    for of in ("scores", "costs"):
        obstacles = dict.fromkeys(filter(None, (point.obstacle(of) for point in points)))
        yield from (f"{of.capitalize()} are not compared: {reason}." for reason in obstacles)
    if interleaved:
        yield "Both sides are of one run and were measured interleaved: drift of the machine favours neither."
    elif not all(point.obstacle("costs") for point in points):
        yield (
            f"The runs were measured one after the other (A {a.manifest.created[:16]}, B {b.manifest.created[:16]} "
            "UTC), not interleaved: drift of the machine is part of a change of cost. The speed-ups over each run's "
            "own full depth were measured interleaved with it; where they did not change, the machine probably did."
        )
        for point in points:
            one = point.of(LATENCY_P50)
            if point.baseline and one.distinguishable and one.value is not None:
                slower = "slower" if one.value > 0 else "faster"
                yield f"{point.task}: full depth itself is {100 * abs(one.value):.1f} % {slower} in B."
    if any(one.value is not None and not one.measured for point in points for one in point.changes):
        yield "Energy is an estimate and no measurement: verdicts leave it out, and no condition is judged by it."
    yield (
        "Intervals are over prompts, or blocks of them, and do not include what another process or another day would "
        "change; a percentile has an interval only where five prompts lie beyond it."
    )
