"""A comparison of two runs as Markdown, for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from harness.contracts import Metric
from reports.comparing.conditions import Judgement, grouped
from reports.comparing.layout import (
    DETAIL_HEADER,
    LEGEND,
    change_text,
    detail_rows,
    header,
    headline,
    interval_text,
    runs,
)
from reports.comparing.results import PointChange, RunChange
from reports.tables.markdown import escape_markdown, markdown_code, markdown_row

__all__ = ["comparison_markdown"]

_MARKS = {"holds": "❌", "perhaps": "⚠️", "passed": "✅", "unknown": "❓"}


def comparison_markdown(comparison: RunChange, judgements: Sequence[Judgement]) -> str:
    """Return the whole comparison: words first, then tables, with details folded away.

    Everything that a user named is escaped.
    """
    lines = ["## Early-exit benchmark: A → B", ""]
    lines.extend(f"- **{letter}**: {escape_markdown(words)}" for letter, words in runs(comparison))
    lines.extend(["", escape_markdown(comparison.verdict)])
    if judgements:
        lines.extend(["", *(f"- {_MARKS[one.outcome]} {escape_markdown(line)}" for line, one in grouped(judgements))])
    for task in dict.fromkeys(point.task for point in comparison.points):
        lines.extend(_task(task, [point for point in comparison.points if point.task == task]))
    if comparison.skipped:
        lines.append("")
        lines.extend(
            f"- not compared: {escape_markdown(task)}, {markdown_code(name)}: {escape_markdown(reason)}"
            for task, name, reason in comparison.skipped
        )
    lines.extend(_folded("Every metric", _details(comparison.points)))
    if comparison.differences:
        table = [markdown_row(["", "A", "B"]), markdown_row([":--", ":--", ":--"])]
        table.extend(markdown_row(map(escape_markdown, (one.what, one.a, one.b))) for one in comparison.differences)
        lines.extend(_folded("What differs between the runs", table))
    lines.append("")
    lines.extend(f"- {escape_markdown(note)}" for note in comparison.notes)
    lines.extend(f"- {escape_markdown(line)}" for line in LEGEND)
    return "\n".join(lines) + "\n"


def _task(task: str, points: Sequence[PointChange]) -> Iterator[str]:
    shown = headline(points)
    heads = [next(point.of(metric) for point in points if point.of(metric).value is not None) for metric in shown]
    yield from ("", f"### {escape_markdown(task)}", "")
    yield markdown_row(["operating point", "KV", *(escape_markdown(header(one)) for one in heads), "in words"])
    yield markdown_row([":--", ":--", *("--:" for _ in shown), ":--"])
    for point in points:
        cells = [_changed(point, metric) for metric in shown]
        yield markdown_row(
            [markdown_code(point.name), escape_markdown(point.kv), *cells, escape_markdown(point.verdict)]
        )


def _changed(point: PointChange, metric: Metric) -> str:
    one = point.of(metric)
    text = "<br>".join(filter(None, (escape_markdown(change_text(one)), escape_markdown(interval_text(one)))))
    return f"**{text}**" if one.distinguishable else text


def _details(points: Sequence[PointChange]) -> Iterator[str]:
    for point in points:
        yield from (f"**{escape_markdown(point.task)}**, {markdown_code(point.name)}", "")
        yield markdown_row(DETAIL_HEADER)
        yield markdown_row([":--", "--:", "--:", "--:", "--:", "--:", ":--"])
        for row in detail_rows(point):
            yield markdown_row(escape_markdown(cell) for cell in row.cells)
        yield ""


def _folded(title: str, lines: Iterable[str]) -> list[str]:
    return ["", f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]
