"""A comparison of two runs as Markdown, for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from reports.comparing.conditions import Judgement, grouped
from reports.comparing.layout import (
    DETAIL_HEADER,
    HEADLINE,
    LEGEND,
    change_text,
    detail_rows,
    header,
    interval_text,
    runs,
)
from reports.comparing.results import PointChange, RunChange

__all__ = ["comparison_markdown"]

_ESCAPES = {**{character: f"\\{character}" for character in "\\`*_["}, "<": "&lt;", "@": "&#64;", "#": "&#35;"}
_MARKS = {"holds": "❌", "perhaps": "⚠️", "passed": "✅", "unknown": "❓"}


def comparison_markdown(comparison: RunChange, judgements: Sequence[Judgement]) -> str:
    """Return the whole comparison: words first, then tables, with details folded away.

    Everything that a user named is escaped.
    """
    lines = ["## Early-exit benchmark: A → B", ""]
    lines.extend(f"- **{letter}**: {_escaped(words)}" for letter, words in runs(comparison))
    lines.extend(["", _escaped(comparison.verdict)])
    if judgements:
        lines.extend(["", *(f"- {_MARKS[one.outcome]} {_escaped(line)}" for line, one in grouped(judgements))])
    for task in dict.fromkeys(point.task for point in comparison.points):
        lines.extend(_task(task, [point for point in comparison.points if point.task == task]))
    if comparison.skipped:
        lines.append("")
        lines.extend(
            f"- not compared: {_escaped(task)}, {_code(name)}: {_escaped(reason)}"
            for task, name, reason in comparison.skipped
        )
    lines.extend(_folded("Every metric", _details(comparison.points)))
    if comparison.differences:
        table = [_row(["", "A", "B"]), _row([":--", ":--", ":--"])]
        table.extend(_row(map(_escaped, (one.what, one.a, one.b))) for one in comparison.differences)
        lines.extend(_folded("What differs between the runs", table))
    lines.append("")
    lines.extend(f"- {_escaped(note)}" for note in comparison.notes)
    lines.extend(f"- {_escaped(line)}" for line in LEGEND)
    return "\n".join(lines) + "\n"


def _task(task: str, points: Sequence[PointChange]) -> Iterator[str]:
    shown = [name for name in HEADLINE if any(point.of(name).value is not None for point in points)]
    heads = [next(point.of(name) for point in points if point.of(name).value is not None) for name in shown]
    yield from ("", f"### {_escaped(task)}", "")
    yield _row(["operating point", *(_escaped(header(one)) for one in heads), "in words"])
    yield _row([":--", *("--:" for _ in shown), ":--"])
    for point in points:
        cells = [_changed(point, name) for name in shown]
        yield _row([_code(point.name), *cells, _escaped(point.verdict)])


def _changed(point: PointChange, name: str) -> str:
    one = point.of(name)
    text = "<br>".join(filter(None, (_escaped(change_text(one)), _escaped(interval_text(one)))))
    return f"**{text}**" if one.distinguishable else text


def _details(points: Sequence[PointChange]) -> Iterator[str]:
    for point in points:
        yield from (f"**{_escaped(point.task)}**, {_code(point.name)}", "")
        yield _row(DETAIL_HEADER)
        yield _row([":--", "--:", "--:", "--:", "--:", "--:", ":--"])
        for row in detail_rows(point):
            yield _row(_escaped(cell) for cell in row.cells)
        yield ""


def _folded(title: str, lines: Iterable[str]) -> list[str]:
    return ["", f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _code(name: str) -> str:
    """A name as code; one with a backtick as escaped text, since code has no escapes."""
    flat = " ".join(name.split())
    return _escaped(flat) if "`" in flat else f"`{flat}`"


def _escaped(text: str) -> str:
    """Text in which nothing is markup and nobody is mentioned."""
    flat = " ".join(text.split())
    return "".join(_ESCAPES.get(character, character) for character in flat)
