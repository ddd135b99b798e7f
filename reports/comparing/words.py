"""What may be said of a change: per operating point, and of two runs as a whole.

A change is named only where test and interval agree that there is one. "No distinguishable change" does not mean equal;
"too few" means that so few prompts could not have shown one, "too many" that no number of prompts could have, for all
the operating points that are tested together. Work (layers skipped) that did not change says nothing of time or score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.records.estimate import NoInterval
from reports.comparing.change import Change
from reports.comparing.results import PointChange
from reports.metrics.scores import EDIT_SIMILARITY
from reports.metrics.speedups import SPEEDUP
from reports.metrics.time import LATENCY_P50
from reports.statistics.plausible import all_plausible

__all__ = ["overall", "verdict"]

NO_CHANGE = "no distinguishable change"
TOO_FEW = "too few prompts to tell"
TOO_ALIKE = "too few prompts that differ to tell"
TOO_MANY = "too many operating points to tell"


def verdict(point: PointChange) -> str:
    """Say in words what changed at one operating point.

    Energy is named only where a sensor measured it, and what has no words of its own only where nothing else changed.
    """
    known = [one for one in point.changes if one.measured and _can_be_told(one)]
    told = [one for one in known if one.metric.change]
    told.sort(key=lambda one: not one.metric.is_cost)
    said = [_words(one) for one in told if one.distinguishable]
    others = [one.metric.title or one.metric.term for one in known if one.distinguishable]
    if not said and others:
        said = [f"changed: {', '.join(others)}"]
    elif not told:
        return "nothing could be compared"
    elif not said:
        silences = {_silence(one) for one in [one for one in told if one.metric.kind != "work"] or told}
        said = [next(words for words in (NO_CHANGE, TOO_MANY, TOO_ALIKE, TOO_FEW) if words in silences)]
    return "; ".join([*said, *_tokens(point)])


def _can_be_told(one: Change) -> bool:
    return one.value is not None and all_plausible((one.value, *(one.interval or ())))


def overall(points: Sequence[PointChange]) -> str:
    """Say in words what changed from run A to run B."""
    sentences = [
        _counted(points, "Time of requests", lambda point: point.of(LATENCY_P50), ("slower", "faster")),
        _counted(points, "Against full depth of its own run", lambda point: point.of(SPEEDUP), ("faster", "slower")),
        _counted(points, "Edit similarity", lambda point: point.of(EDIT_SIMILARITY), ("higher", "lower")),
    ]
    compared = [point for point in points if point.identical[1]]
    if compared:
        same = sum(point.identical[0] == point.identical[1] for point in compared)
        sentences.append(
            "Tokens: all the same." if same == len(compared) else f"Tokens: the same at {same} of {len(compared)}."
        )
    return " ".join(filter(None, sentences)) or "Nothing could be compared."


def _counted(
    points: Sequence[PointChange], subject: str, pick: Callable[[PointChange], Change], words: tuple[str, str]
) -> str:
    """One sentence of counts; ``words``: for a larger number, for a smaller one."""
    told = [one for one in map(pick, points) if one.applies]
    known = [one for one in told if one.value is not None]
    if not known:
        reasons = list(dict.fromkeys(one.reason for one in told if one.reason))
        return f"{subject}: not compared ({'; '.join(reasons)})." if reasons else ""
    counts: dict[str, int] = {}
    for one in known:
        value = one.value or 0.0
        word = words[0] if value > 0 else words[1]
        if not one.distinguishable:
            word = _silence(one)
        counts[word] = counts.get(word, 0) + 1
    order = sorted(counts, key=lambda word: word in (TOO_FEW, TOO_ALIKE, TOO_MANY, NO_CHANGE))
    first, *rest = [f"{word} at {counts[word]}" for word in order]
    tasks = " of all tasks" if len({point.task for point in points}) > 1 else ""
    noun = f"operating point{'s' if len(known) > 1 else ''}{tasks}"
    return f"{subject}: {first} of {len(known)} {noun}{''.join(f', {part}' for part in rest)}."


def _silence(one: Change) -> str:
    """Why no change is named: none was found, or none could have been."""
    if one.no_interval is NoInterval.FEW_DIFFERING:
        return TOO_ALIKE
    return TOO_FEW if one.too_few else TOO_MANY if one.too_many else NO_CHANGE


def _words(one: Change) -> str:
    assert one.value is not None
    assert one.interval is not None
    wording, up = one.metric.change, one.value > 0
    assert wording is not None
    good = not up if one.metric.better == "lower" else up
    low, high = sorted(map(abs, one.interval))
    if one.metric.is_cost or one.metric.form == "percent":
        unit = "%" if one.metric.is_cost else "percentage points"
        amount = f"{100 * abs(one.value):.1f} {unit} [{100 * low:.1f}, {100 * high:.1f}]"
    else:
        amount = f"{abs(one.value):.3f} [{low:.3f}, {high:.3f}]"
    return (wording.better if good else wording.worse).format(amount)


def _tokens(point: PointChange) -> list[str]:
    same, compared = point.identical
    if not compared:
        return []
    if same == compared:
        return ["every token the same"]
    return [f"{compared - same} of {compared} completions have other tokens"]
