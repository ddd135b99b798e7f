"""A comparison of two runs in a terminal: what differs, one table per task, verdicts, and details where asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table

from harness.appearance.terminal import Line, Text
from harness.appearance.visible_text import one_line
from reports.comparing.change import Change
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
from reports.tables.columns import MISSING
from reports.tables.writers import fold_label

__all__ = ["ComparisonReport", "render_comparison"]

_WIDEST = 140
_CHANGED = "bold"
_PADDING = 3  # columns between two columns
_DETAILS_SIDE_BY_SIDE = 88
_DETAILS_WITH_P = 76


def render_comparison(comparison: RunChange, *, details: bool) -> ComparisonReport:
    """Return a rich renderable of a comparison; ``details``: every metric of every operating point."""
    return ComparisonReport(comparison, details)


@dataclass(frozen=True)
class ComparisonReport:
    """A comparison that lays itself out for the width it is printed at.

    Attributes:
        comparison: what to show.
        details: show every metric.
    """

    comparison: RunChange
    details: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        options = options.update(width=min(options.max_width, _WIDEST))
        for part in self._parts(options.max_width):
            yield from console.render(part, options)

    def _parts(self, width: int) -> Iterator[RenderableType]:
        found = self.comparison
        yield _heads([(letter, words) for letter, words in runs(found)])
        if found.differences:
            yield _title("What differs")
            yield _differences(found, width)
        for task in dict.fromkeys(point.task for point in found.points):
            points = [point for point in found.points if point.task == task]
            yield _title(task)
            yield _headline(points, width)
            yield Text()
            yield _heads([(point.name, point.verdict) for point in points], bold=False)
            if self.details or len(found.points) == 1:
                for point in points:
                    yield Text()
                    yield _details(point, width)
        for task, point_name, reason in found.skipped:
            yield Line(f"not compared: {task}, {point_name}: {reason}", "dim")
        yield _title("In words")
        yield Line(found.verdict)
        yield Text()
        yield _heads([("•", note) for note in found.notes], bold=False)
        yield Text()
        yield Group(*(Text(line, "dim") for line in LEGEND))


def _title(text: str) -> RenderableType:
    return Group(Text(), Line(text, "bold"))


def _heads(rows: Sequence[tuple[str, str]], *, bold: bool = True) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold" if bold else "", no_wrap=True, max_width=36, overflow="ellipsis")
    grid.add_column()
    for name, words in rows:
        grid.add_row(Line(name), Line(words))
    return grid


def _differences(found: RunChange, width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("", "A", "B"):
        table.add_column(name, overflow="fold", max_width=max(20, width // 2))
    for one in found.differences:
        table.add_row(Line(one.what), Line(one.a), Line(one.b))
    return table


def _headline(points: Sequence[PointChange], width: int) -> Table:
    longest = max(20, width // 4)
    names = [fold_label(point.name, longest) for point in points]
    policies = [one_line(point.kv).replace(" → ", " →\n") for point in points]
    leading = (("operating point", *names), ("KV", *policies))
    room = width - sum(max(len(line) for text in texts for line in text.splitlines()) for texts in leading) - _PADDING
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("operating point", no_wrap=True)
    table.add_column("KV", no_wrap=True)
    columns: list[list[Text]] = []
    for metric in headline(points):
        told = [point.of(metric) for point in points]
        first = next(one for one in told if one.value is not None)
        cells = [Text("\n".join(filter(None, (change_text(one), interval_text(one)))), _style(one)) for one in told]
        wide = max(len(line) for text in (header(first), *(cell.plain for cell in cells)) for line in text.splitlines())
        room -= wide + _PADDING
        if room < 0 and columns:
            break
        table.add_column(Text(header(first)), justify="right", no_wrap=True)
        columns.append(cells)
    for index, name in enumerate(names):
        table.add_row(Text(name), Text(policies[index]), *(column[index] for column in columns))
    return table


def _style(one: Change) -> str:
    return _CHANGED if one.distinguishable else ""


def _details(point: PointChange, width: int) -> Group:
    """Every metric; where there is little room the interval stands below the change, then without the p-value."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title=Line(point.name, "bold"), title_justify="left"
    )
    wide, without_p = width >= _DETAILS_SIDE_BY_SIDE, width < _DETAILS_WITH_P
    kept = [0, 1, 2, 3, *([4] if wide else []), *([] if without_p else [5])]
    for index in kept:
        table.add_column(DETAIL_HEADER[index], justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    reasons: dict[str, list[str]] = {}
    for row in detail_rows(point):
        cells = list(row.cells)
        if not wide and cells[4] != MISSING:
            cells[3] += f"\n{cells[4]}"
        table.add_row(*(Text(cells[index], _CHANGED if row.distinguishable else "") for index in kept))
        if cells[-1]:
            reasons.setdefault(cells[-1], []).append(cells[0])
    return Group(table, *(Line(f"{', '.join(titles)}: {reason}", "dim") for reason, titles in reasons.items()))
