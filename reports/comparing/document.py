"""A comparison as one document: for a terminal, in Markdown for a comment on a pull request, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from harness.contracts import Metric
from harness.records.estimate import MISSING
from reports.comparing.change import AGREEMENT, UNMEASURED, Change
from reports.comparing.conditions import Judgement, grouped
from reports.comparing.results import PointChange, RunChange
from reports.metrics.vocabulary import HEADLINE
from reports.statistics.plausible import is_plausible
from reports.tables.result import time_unit
from reports.tables.table import Column, Heading, Line, Part, Table, Tone
from reports.tables.writers import to_markdown

SCHEMA_VERSION = 2

LEGEND = (
    "Changes from A to B: relative for costs (%), absolute for scores and layers (pp: percentage points).",
    "A = B: share of tokens that are the same in both, which is no change but their agreement.",
    "Speed-up: over full depth of the same run, so that a machine that is slower or faster in B mostly cancels.",
    "*: Holm-corrected p ≤ 0.05 (over the operating points of a task), and an interval without 0. –: not compared.",
    "[too few]: prompts, blocks, or prompts whose scores differ, for an interval or a test.",
)
_FACTS = (
    *("a", "b", "unit", "absolute", "absolute_interval", "relative", "relative_interval", "p", "p_holm"),
    *("distinguishable", "units", "prompts", "paired", "source", "measured", "reason", "no_interval"),
)
_MARKS = {"holds": "❌", "perhaps": "⚠️", "passed": "✅", "unknown": "❓"}


def tables(found: RunChange, *, details: bool) -> Iterator[Part]:
    """Yield the whole comparison; with ``details`` every metric, which a single operating point shows anyway."""
    yield from (Line(found.verdict, "strong"), *_runs(found))
    yield from _differences(found, "What differs")
    for task in dict.fromkeys(point.task for point in found.points):
        yield from _task(found, task)
        if details or len(found.points) == 1:
            yield from _details(point for point in found.points if point.task == task)
    yield from _skipped(found)
    yield Line("")
    yield from _notes(found)


def comparison_markdown(found: RunChange, judgements: Sequence[Judgement]) -> str:
    """Return the whole comparison in Markdown: words first, then tables, with details folded away."""
    above = [
        Heading("Early-exit benchmark: A → B"),
        Line(found.verdict, "strong"),
        *_runs(found),
        *(Line(f"{_MARKS[one.outcome]} {line}", bullet=True) for line, one in grouped(judgements)),
        *chain(*(_task(found, task) for task in dict.fromkeys(point.task for point in found.points))),
        *_skipped(found),
    ]
    lines = [
        *to_markdown(above),
        *_folded("Every metric", _details(found.points)),
        *_folded("What differs between the runs", _differences(found)),
        *to_markdown(_notes(found)),
    ]
    return "\n".join(lines).lstrip("\n") + "\n"


def _folded(title: str, parts: Iterable[Part]) -> Iterator[str]:
    if lines := list(to_markdown(parts)):
        yield from ("", f"<details><summary>{title}</summary>", *lines, "", "</details>")


def _runs(found: RunChange) -> Iterator[Line]:
    """Yield what A and B are: folder, time and model."""
    for letter, run in (("A", found.a), ("B", found.b)):
        model = run.manifest.model
        sha = f" {model.weights_sha256[:12]}" if model.weights_sha256 else ""
        yield Line(
            f"{letter}: {run.name}, {run.manifest.created[:16]} UTC, {model.name}, {model.weights} weights{sha}",
            bullet=True,
        )


def _differences(found: RunChange, title: str = "") -> Iterator[Table]:
    if found.differences:
        columns = [Column(header=header, kind="text") for header in ("", "A", "B")]
        yield Table.of_rows(title, columns, [(one.what, one.a, one.b) for one in found.differences])


def _task(found: RunChange, task: str) -> Iterator[Part]:
    """Yield the most telling changes at each operating point of a task, and what they are in words."""
    points = [point for point in found.points if point.task == task]
    yield Table(
        title=task,
        columns=(
            Column(header="operating point", cells=tuple(point.name for point in points), kind="label"),
            Column(header="KV", cells=tuple(point.kv for point in points), kind="text"),
            *(
                _changes([point.of(metric) for point in points], float(place))
                for place, metric in enumerate(_headline(points))
            ),
        ),
    )
    yield Line("")
    yield from (Line(f"{point.name}: {point.verdict}", bullet=True) for point in points)


def _changes(changes: Sequence[Change], priority: float) -> Column:
    """Return the changes of one metric; narrow screens leave out the later ones."""
    form, scale, unit = _form(changes[0].metric)
    told = tuple(one.distinguishable for one in changes)
    return Column(
        header=_header(next(one for one in changes if one.value is not None)),
        cells=tuple(one.estimate for one in changes),
        form=form,
        scale=scale,
        unit=unit,
        name=changes[0].metric.name,
        priority=priority,
        tones=tuple("strong" if one else "" for one in told),
        marks=tuple("*" if one else "" for one in told),
    )


def _headline(points: Sequence[PointChange]) -> list[Metric]:
    """Return the metrics of the first table that some point has, the most telling first."""
    changes = [one for point in points for one in point.changes if one.value is not None and one.measured]
    shown = dict.fromkeys(one.metric for one in changes if one.metric is AGREEMENT or HEADLINE in one.metric.sections)
    worded = dict.fromkeys(one.metric for one in changes if one.metric.change and one.metric not in shown)
    return [*sorted(shown, key=lambda metric: metric.priority if metric is not AGREEMENT else 3), *worded]


def _header(one: Change) -> str:
    sign = "" if one.metric is AGREEMENT else "Δ "
    source = f" ({one.source})" if not one.measured and one.source else ""
    return f"{sign}{one.metric.title or one.metric.term}{source}"


def _form(metric: Metric) -> tuple[str, float, str]:
    """Return how a change is written: format, scale, unit."""
    if metric is AGREEMENT:
        return ".3f", 1, ""
    if metric.is_cost or metric.form == "percent":
        return "+.1f", 100, "%" if metric.is_cost else "pp"
    return "+.2f" if metric.form == "number" else "+.3f", 1, ""


def _details(points: Iterable[PointChange]) -> Iterator[Table]:
    """Yield every metric of each operating point that applies to it and that some run has."""
    for point in points:
        rows, reasons = [], dict[str, list[str]]()
        for one in point.changes:
            if not one.applies or one.reason == UNMEASURED:
                continue
            name = _header(one).removeprefix("Δ ")
            tone: Tone = "strong" if one.distinguishable else ""
            cells = (name, _level(one, one.a), _level(one, one.b), _change(one), _p(one.p_holm))
            rows.append([Line(cell, tone) for cell in cells])
            if one.reason:
                reasons.setdefault(one.reason, []).append(name)
        yield Table.of_rows(
            f"{point.task}, {point.name}",
            (Column(header="", kind="text"), *("A", "B", "change [95 %]", "p (Holm)")),
            rows,
            wide=True,
            notes=tuple(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()),
        )


def _change(one: Change) -> str:
    if one.estimate is None:
        return MISSING
    form, scale, unit = _form(one.metric)
    text = one.estimate.text(f"{{:{form}}} {unit}".rstrip(), f"{{:{form}}}", scale)
    return f"{text} *" if one.distinguishable else text


def _p(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _level(one: Change, value: float | None) -> str:
    if value is None or not is_plausible(value):
        return MISSING
    form, unit = one.metric.form, one.metric.unit
    if form == "seconds":
        symbol, scale = time_unit([one.a, one.b])
        return f"{value * scale:.1f} {symbol}" if symbol == "ms" else f"{value:.2f} s"
    if form == "number":
        return f"{value:.4g}{f' {unit}' if len(unit) == 1 else ''}"
    return {"ratio": f"{value:.3f}×", "percent": f"{100 * value:.1f} %"}.get(form, f"{value:.3f}")


def _skipped(found: RunChange) -> Iterator[Line]:
    yield from (Line(f"not compared: {task}, {name}: {why}", "faint", bullet=True) for task, name, why in found.skipped)


def _notes(found: RunChange) -> Iterator[Line]:
    yield from (Line(note, bullet=True) for note in found.notes)
    yield Line("")
    yield from (Line(line, "faint", bullet=True) for line in LEGEND)


def comparison_document(comparison: RunChange, judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Return a JSON-able document; ``null`` is "not compared", with the reason beside it.

    Changes are fractions (0.05 is 5 %), levels in SI units; intervals are of 95 %. ``measured`` is false of an energy
    that no sensor of both runs measured: an estimate, of which no condition can be judged.
    """
    runs = {
        letter: {
            "name": run.name,
            "created": run.manifest.created,
            "state": run.state or "finished",
            "model": run.manifest.model.name,
            "weights_sha256": run.manifest.model.weights_sha256,
        }
        for letter, run in (("a", comparison.a), ("b", comparison.b))
    }
    conditions = [
        {
            "condition": one.condition.text,
            "task": one.task or None,
            "operating_point": one.point or None,
            "outcome": one.outcome,
            "words": one.words,
        }
        for one in judgements
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        **runs,
        "differences": [one._asdict() for one in comparison.differences],
        "verdict": comparison.verdict,
        "notes": list(comparison.notes),
        "points": [_point_facts(point) for point in comparison.points],
        "skipped": [dict(zip(("task", "operating_point", "reason"), one, strict=True)) for one in comparison.skipped],
        "conditions": conditions,
    }


def _point_facts(point: PointChange) -> dict[str, Any]:
    return {
        "task": point.task,
        "operating_point_a": point.a,
        "operating_point_b": point.b,
        **{f"kv_{letter}": one.kv for letter, one in zip("ab", point.conditions, strict=True)},
        **{f"weights_format_{letter}": one.weights_format for letter, one in zip("ab", point.conditions, strict=True)},
        "verdict": point.verdict,
        "prompts_matched": len(point.matched.same),
        "prompts_a": point.matched.in_a,
        "prompts_b": point.matched.in_b,
        "completions_identical": point.identical[0],
        "completions_compared": point.identical[1],
        "metrics": {one.metric.name: _change_facts(one) for one in point.changes},
    }


def _change_facts(one: Change) -> dict[str, Any]:
    facts = {name: getattr(one, name, None) for name in _FACTS}
    words = {"unit": one.metric.unit or None, "source": one.source or None, "reason": one.reason or None}
    return facts | words
