"""The report in a terminal: a table that explains itself, at any width from 60 columns on.

Per table: what was run on what, the headline (quality beside saving), the Pareto plot, and the details.
Columns the headline has room for are not repeated below; what does not fit moves to the details. Details that
do not fit name their rows by letter alone, and are split into further tables if need be. Numbers never wrap.
Colour only repeats what marks already say (``●`` on the front, ``◇`` a bound), so nothing is lost without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

from harness.appearance.terminal import Line, Text
from harness.appearance.visible_text import one_line
from harness.records.cost import Attribution
from harness.records.summary import Summary, SummaryRow
from reports.metrics.sections import AGAINST_FULL, BYTE_MODEL, DRAFTS
from reports.summary.pareto import unmarked, without_front
from reports.tables.acceptance_columns import ACCEPTANCE_NOTE, acceptance_sections
from reports.tables.attribution_table import TextTable, attribution_notes, attribution_tables, without_plus_minus
from reports.tables.columns import (
    MISSING,
    Column,
    columns_of,
    explanations,
    headline_columns,
    section_columns,
    section_titles,
    unmeasured,
    verdicts,
)
from reports.tables.draft_lengths import draft_length_table, without_intervals
from reports.tables.plot import BOUND, FRONT, draw_front
from reports.tables.result import HEADLINE_TITLE, ResultTable, is_candidate, legend, mark, split_tables

__all__ = ["Report", "fold_label", "headline", "render"]

WHOLE = (BYTE_MODEL, DRAFTS)
"""Sections that are read from left to right: what the headline shows already is repeated in them."""
_QUALITY = 2
"""Priority of the columns of quality, of which one is the front's."""
_WIDEST = 132
_PLOT_WIDTH = 78
_WIDE_ENOUGH_FOR_INTERVALS = 110


def render(summary: Summary, *, details: bool = True) -> Report:
    """Return a rich renderable of a whole summary; print it with any ``rich.console.Console``.

    Args:
        summary: as :func:`reports.summary.summarise.summarise` made it.
        details: show every column, not the headline and the plot alone.
    """
    return Report(summary, details)


@dataclass(frozen=True)
class Report:
    """A summary that lays itself out for the width it is printed at.

    Attributes:
        summary: what to show.
        details: show every column, not the headline and the plot alone.
    """

    summary: Summary
    details: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        options = options.update(width=min(options.max_width, _WIDEST))
        parts: list[RenderableType] = []
        tables = split_tables(self.summary)
        for table in tables:
            parts.extend(_one_table(table, self.details, console, options))
        for attribution in self.summary.attributions:
            parts.extend(_attribution(attribution, options))
        if tables:
            parts.extend(_how_to_read(self.summary.rows, self.details, options))
        parts.extend(_notes(self.summary.notes, options))
        for part in parts:
            yield from console.render(part, options)


def fold_label(label: str, width: int) -> str:
    """Break an operating point's label so that no line is longer than ``width``: before its options where it can be."""
    lines = [""]
    for index, piece in enumerate(re.split("(?=[:@+])", one_line(label))):
        if index and len(lines[-1]) + len(piece) > width:
            lines.append(f"  {piece}")
        else:
            lines[-1] += piece
        while len(lines[-1]) > width:  # a name, or a value, that is longer by itself
            lines[-1:] = [lines[-1][:width], f"  {lines[-1][width:]}"]
    return "\n".join(lines)


def headline(table: ResultTable, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    """Yield what was run on what, and the columns that matter most, as many as fit."""
    yield Text()
    yield _banner(table.heading, options)
    for line in table.subheadings:
        yield Line(line, "dim")
    yield Text()
    yield _section_title(HEADLINE_TITLE)
    yield _grid(table, _fitting(table, headline_columns(table, columns_of(table)), console, options), options)


def _one_table(
    table: ResultTable, details: bool, console: Console, options: ConsoleOptions
) -> Iterator[RenderableType]:
    columns = columns_of(table)
    shown = _fitting(table, headline_columns(table, columns), console, options)
    yield from headline(table, console, options)
    yield from _plot(table, options)
    for title in section_titles(columns) if details else ():
        numbers = [column for column in section_columns(title, columns) if column not in shown or title in WHOLE]
        yield from _section(title, table, numbers, console, options)
        if title == DRAFTS:
            further = list(acceptance_sections(table))
            for drafts, columns_of_drafts in further:
                yield from _section(drafts, table, columns_of_drafts, console, options)
            if further:
                yield Line(ACCEPTANCE_NOTE, "dim")
        if title == AGAINST_FULL:
            yield from _sentences(table)
    lengths = draft_length_table(table) if details else None
    if lengths is not None:
        narrow = options.max_width < _WIDE_ENOUGH_FOR_INTERVALS
        yield from _text_table(without_intervals(lengths) if narrow else lengths, options)
    absent = unmeasured(columns) if details else ""
    if absent:
        yield Text()
        yield Line(absent, "dim")


def _section(
    title: str, table: ResultTable, columns: Sequence[Column], console: Console, options: ConsoleOptions
) -> Iterator[RenderableType]:
    for index, chunk in enumerate(_chunks(table, columns, console, options)):
        yield Text()
        yield _section_title(title if index == 0 else f"{title}, continued")
        yield _grid(table, chunk, options, named=len(chunk) == len(columns) and _fits(table, chunk, console, options))


def _attribution(attribution: Attribution, options: ConsoleOptions) -> Iterator[RenderableType]:
    yield Text()
    yield _banner(f"{attribution.where} · where the {attribution.quantity} goes", options)
    narrow = options.max_width < _WIDE_ENOUGH_FOR_INTERVALS
    for whole in attribution_tables(attribution):
        yield from _text_table(without_plus_minus(whole) if narrow else whole, options)
    yield Text()
    for note in attribution_notes(attribution):
        yield Line(note, "dim")


def _text_table(table: TextTable, options: ConsoleOptions) -> Iterator[RenderableType]:
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    grid.add_column(table.header[0], no_wrap=True)
    for header in table.header[1:]:
        grid.add_column(header, justify="right", vertical="bottom")
    for name, *cells in table.rows:
        grid.add_row(Text(fold_label(name, max(20, options.max_width // 4))), *(Text(cell) for cell in cells))
    yield Text()
    yield _section_title(table.title)
    yield grid


def _banner(title: str, options: ConsoleOptions) -> RenderableType:
    title = one_line(title)
    filled = "━" * max(2, options.max_width - len(title) - 4)
    return Text.assemble(("━━ ", "green"), (title, "bold"), (f" {filled}", "green"))


def _section_title(title: str) -> Text:
    return Line(title, "bold")


def _fitting(table: ResultTable, columns: Sequence[Column], console: Console, options: ConsoleOptions) -> list[Column]:
    """As many columns as fit, by priority, in reading order; fields of the row come before all metrics.

    A column that fits only without its intervals stands so; a paired ratio says nothing without them. Speed-up and
    quality have their place before any other column has intervals. What another column states of all rows over one full
    depth comes last.
    """
    restated = {column.metric.restates for column in columns if column.metric is not None}

    def priority(column: Column) -> float:
        if column.metric is None:
            return 0
        return math.inf if column.key in restated else column.metric.priority

    def shapes(column: Column) -> tuple[Column, ...]:
        return (column,) if column.metric is None or column.metric.paired else (column, column.narrow)

    chosen: dict[str, Column] = {}
    by_priority = sorted(columns, key=priority)
    leading = [(column, shapes(column)[-1:]) for column in by_priority if priority(column) <= _QUALITY]
    for column, some in [*leading, *((column, shapes(column)) for column in by_priority)]:
        for shape in some:
            trial = {**chosen, column.key: shape}
            if _fits(table, _in_order(columns, trial), console, options):
                chosen = trial
                break
    return _in_order(columns, chosen)


def _in_order(columns: Sequence[Column], chosen: Mapping[str, Column]) -> list[Column]:
    return [chosen[column.key] for column in columns if column.key in chosen]


def _chunks(
    table: ResultTable, columns: Sequence[Column], console: Console, options: ConsoleOptions
) -> list[list[Column]]:
    """Split columns over as few tables as fit the width, evenly filled; without names unless one is enough."""
    if not columns:
        return []
    if _fits(table, columns, console, options):
        return [list(columns)]
    for parts in range(1, len(columns) + 1):
        size = -(-len(columns) // parts)
        chunks = [list(columns[start : start + size]) for start in range(0, len(columns), size)]
        if all(_fits(table, chunk, console, options, named=False) for chunk in chunks):
            return chunks
    return [[column] for column in columns]


def _fits(
    table: ResultTable, columns: Sequence[Column], console: Console, options: ConsoleOptions, *, named: bool = True
) -> bool:
    wide_open = options.update(width=10_000)
    grid = _grid(table, columns, options, named=named)
    return Measurement.get(console, wide_open, grid).maximum <= options.max_width


def _grid(table: ResultTable, columns: Sequence[Column], options: ConsoleOptions, *, named: bool = True) -> Table:
    """Rows by letter, and by name where there is room; the letters stand beside the names in the headline."""
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    grid.add_column("", no_wrap=True)
    if named:
        grid.add_column("operating point", no_wrap=True)
    for column in columns:
        grid.add_column(Text(column.lines), justify="left" if column.left else "right", no_wrap=True, vertical="bottom")
    name_width = max(20, options.max_width // 3)
    for index, (row, letter) in enumerate(zip(table.rows, table.letters, strict=True)):
        style = _style(row)
        grid.add_row(
            Text(f"{mark(row)} {letter}", style),
            *([Text(fold_label(row.operating_point, name_width), style)] if named else []),
            *(Text(column.cells[index], style) for column in columns),
        )
    return grid


def _sentences(table: ResultTable) -> Iterator[RenderableType]:
    """What may be said, below the numbers: one wrapping line per operating point."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for row, letter, cell in zip(table.rows, table.letters, verdicts(table), strict=True):
        if cell != MISSING:
            grid.add_row(Text(f"{mark(row)} {letter}", _style(row)), Line(cell))
    yield Text()
    yield grid


def _plot(table: ResultTable, options: ConsoleOptions) -> Iterator[RenderableType]:
    picture = draw_front(table, width=max(30, min(options.max_width, _PLOT_WIDTH)))
    yield Text()
    if picture is None:
        yield Text(f"No Pareto front: {without_front(table.rows)}.", "dim")
        return
    yield _section_title("Pareto front")
    if why := unmarked(table.rows):
        yield Line(why, "dim")
    entries = [
        Line(f"{mark(row)} {letter} {row.operating_point}", _style(row), overflow="fold")
        for letter, row in zip(table.letters, table.rows, strict=True)
    ]
    if _PLOT_WIDTH + 3 + max(entry.cell_len for entry in entries) <= options.max_width:
        beside = Table.grid(padding=(0, 3, 0, 0))
        beside.add_row(picture, Text("\n").join([Text(), *entries]))
        yield beside
    else:
        yield picture
        yield Columns(entries, padding=(0, 3))


def _style(row: SummaryRow) -> str:
    return FRONT if row.pareto else "" if is_candidate(row) else BOUND


def _how_to_read(rows: Sequence[SummaryRow], details: bool, options: ConsoleOptions) -> Iterator[RenderableType]:
    yield Text()
    yield _banner("How to read this", options)
    for line in legend(rows):
        yield Text(line, "dim")
    for named in explanations(rows) if details else explanations(rows)[:1]:
        yield _meanings(named)


def _meanings(columns: Iterable[Column]) -> Text:
    text = Text()
    for index, column in enumerate(columns):
        text.append(" · " if index else "")
        text.append(one_line(column.term), "bold")
        text.append(f": {one_line(column.meaning)}", "dim")
    return text


def _notes(notes: Sequence[str], options: ConsoleOptions) -> Iterator[RenderableType]:
    if notes:
        yield Text()
        yield _banner("Notes", options)
    for note in notes:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(Text("•"), Line(note))
        yield grid
