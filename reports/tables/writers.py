"""Writers of tables for terminals, Markdown, HTML and CSV: whatever cells hold stays text, in its cell, and no formula.

LaTeX has pages as well, and a module of its own (:mod:`reports.tables.latex`).
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.table import Table as Grid

from harness.appearance.pages import escape_html, templates
from harness.appearance.terminal import Line as RichLine
from harness.appearance.terminal import Text
from harness.appearance.visible_text import one_line, visible
from harness.records.estimate import Estimate
from reports.tables.table import Cell, Column, Facts, Heading, Line, Part, Table, Tone

STYLES: dict[Tone, str] = {
    "": "", "strong": "bold", "faint": "dim", "good": "green", "bad": "red", "doubtful": "yellow",
    "front": "bold green", "bound": "cyan",
}  # fmt: skip
_ESCAPES = {
    **{character: f"\\{character}" for character in "\\`*_[~$"},
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "@": "&#64;",
    "#": "&#35;",
}
_NUMBERS = re.compile(r"(?:[\d\s.,×%+−–/()]|\[[\d., +−]+\](?!\())*")
"""Numbers with their intervals, which no reader of Markdown takes for a link."""
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Excel and others take a cell that begins like this for a formula, the wide ones in East Asia."""
_WIDEST = 132  # lines of a terminal that are longer are hard to follow
_BETWEEN = 2  # characters between two columns
_TEXT = 24  # characters that a column of sentences has at least, where they are that long
_LEADING = 2  # columns up to this priority have their place before any other shows its intervals
_INDENT = 2  # characters by which rows stand in from the headings of their groups


def to_terminal(parts: Iterable[Part], *, widest: int = _WIDEST) -> Document:
    """Return a rich renderable of tables and what stands beside them, for whatever width it is printed at."""
    return Document(tuple(parts), widest)


def to_markdown(parts: Iterable[Part], level: int = 2) -> Iterator[str]:
    """Yield the lines of Markdown that GitHub renders."""
    listed = False
    for part in _said_once(parts):
        match part:
            case Heading():
                yield from ("", f"{'#' * (level + part.level)} {escape_markdown(part.text)}")
            case Facts():
                strong = "**" * part.flowing
                yield from () if listed else ("",)
                for name, text in part.facts:
                    yield f"- {strong}{escape_markdown(name)}{strong}: {escape_markdown(text)}"
            case Line(text=""):
                pass
            case Line():
                yield from () if part.bullet and listed else ("",)
                yield f"{'- ' * part.bullet}{escape_markdown(part.text)}"
            case Table():
                yield from _markdown_table(part)
        listed = isinstance(part, Facts) or (isinstance(part, Line) and part.bullet)


def to_html(parts: Iterable[Part]) -> Iterator[str]:
    """Yield the elements of an HTML document, without its style."""
    shown: Any = templates("reports").get_template("table.html").module
    for part in _said_once(parts):
        match part:
            case Heading():
                yield f"<h{3 + part.level}>{escape_html(part.text)}</h{3 + part.level}>"
            case Facts():
                yield f"<p>{' · '.join(f'{escape_html(name)}: {escape_html(text)}' for name, text in part.facts)}</p>"
            case Line():
                yield f"<p>{escape_html(part.text)}</p>" if part.text else ""
            case Table():
                yield f"<p><strong>{escape_html(part.title)}</strong></p>{shown.shown(part)}"


def to_csv(table: Table) -> str:
    """Return one line per row under a header; an estimate has its interval in two further columns.

    Numbers are as they were found, without the scale, decimals and unit that they are shown with.
    """
    columns: dict[str, list[Cell]] = {}
    for column in table.columns:
        name = column.name or column.term
        estimates = [cell if isinstance(cell, Estimate) else None for cell in column.cells]
        columns[name] = [one.value if one else cell for one, cell in zip(estimates, column.cells, strict=True)]
        if any(one and one.interval for one in estimates):
            columns[f"{name}_low"] = [one.low if one else None for one in estimates]
            columns[f"{name}_high"] = [one.high if one else None for one in estimates]
    return csv_text(
        list(columns), (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    )


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows under a header; a column that a row lacks is empty, no text is a formula and nothing is hidden."""
    buffer = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(buffer, columns, lineterminator="\n")
    for row in ({name: name for name in columns}, *rows):
        writer.writerow({name: inert(value) for name, value in row.items()})
    return buffer.getvalue()


def inert(value: object) -> object:
    """Return a value that no spreadsheet runs: text that begins like a formula gets a ``'``, numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def escape_markdown(text: str) -> str:
    """Return Markdown of one line in which nothing is markup, nobody is mentioned and no issue linked."""
    return "".join(_ESCAPES.get(character, character) for character in one_line(text))


def markdown_code(name: str) -> str:
    """Return a name as code of one line; one with a backtick as escaped text, since code has no escapes."""
    flat = one_line(name)
    return f"`{flat}`" if flat and "`" not in flat else escape_markdown(flat)


def markdown_row(cells: Iterable[str]) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


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


def _said_once(parts: Iterable[Part]) -> Iterator[Part]:
    """Yield parts of which each note stands under the first table that it belongs to."""
    said: set[str] = set()
    for part in parts:
        if isinstance(part, Table):
            yield replace(part, notes=tuple(note for note in part.notes if note not in said))
            said.update(part.notes)
        else:
            yield part


def _markdown_cell(text: str, *, label: bool) -> str:
    if label:
        return markdown_code(text)
    return text if _NUMBERS.fullmatch(text) else escape_markdown(text)


def _markdown_table(table: Table) -> Iterator[str]:
    if table.title:
        yield from ("", f"**{escape_markdown(table.title)}**")
    heads = (filter(None, (column.term, column.under)) for column in table.columns)
    yield from ("", markdown_row("<br>".join(map(escape_markdown, head)) for head in heads))
    yield markdown_row(":--" if column.left else "--:" for column in table.columns)
    headings = dict(table.groups)
    cells = [[_markdown_cell(text, label=column.kind == "label") for text in column.texts] for column in table.columns]
    for number, row in enumerate(zip(*cells, strict=True)):
        if number in headings:
            yield markdown_row([f"**{escape_markdown(headings[number])}**", *("" for _ in row[1:])])
        yield markdown_row(row)
    for note in table.notes:
        yield from ("", escape_markdown(note))


@dataclass(frozen=True)
class Document:
    """Tables and what stands beside them, laid out for the width they are printed at, ``widest`` at most."""

    parts: tuple[Part, ...]
    widest: int = _WIDEST

    def _repr_html_(self) -> str:
        """Show all of it in a notebook."""
        return "\n".join(to_html(self.parts))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield part by part."""
        options = options.update(width=min(options.max_width, self.widest))
        for part in _said_once(self.parts):
            for one in _rendered(part, options.max_width):
                yield from console.render(one, options)


def _rendered(part: Part, width: int) -> Iterator[RenderableType]:
    match part:
        case Heading():
            title = one_line(part.text)
            filled = "━" * max(2, width - cell_len(title) - 4)
            yield Text()
            yield Text.assemble(("━━ ", "green"), (title, "bold"), (f" {filled}", "green"))
        case Facts(flowing=True):
            parts = ((one_line(name), "bold", f": {one_line(text)}", "dim") for name, text in part.facts)
            yield Text(" · ").join(Text.assemble((name, strong), (text, dim)) for name, strong, text, dim in parts)
        case Facts():
            yield _beside(*((RichLine(name, "dim"), RichLine(text, "dim")) for name, text in part.facts), between=2)
        case Line(bullet=True):
            yield _beside((Text("•"), RichLine(part.text, STYLES[part.tone])))
        case Line():
            yield RichLine(part.text, STYLES[part.tone])
        case Table():
            for one in _fitting(part, width):
                yield Text()
                if one.title:
                    yield RichLine(one.title, "bold")
                yield from _grids(one, width)
            yield from (RichLine(note, "dim") for note in part.notes)


def _beside(*rows: tuple[RenderableType, RenderableType], between: int = 1) -> Grid:
    grid = Grid.grid(padding=(0, between, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _fitting(table: Table, width: int) -> tuple[Table, ...]:
    """Return a table as wide as the screen allows, or the tables that it goes on in."""
    columns = table.columns

    def fits(some: Sequence[Column]) -> bool:
        return sum(_needed(some, width)) + _BETWEEN * (len(some) - 1) <= width

    def shown(some: dict[int, Column]) -> list[Column]:
        return [some[place] for place in sorted(some)]

    def narrow(column: Column) -> Column:
        return column if column.needs_interval else replace(column, intervals=False)

    if not table.wide and not fits(columns):
        by_priority = sorted(range(len(columns)), key=lambda place: columns[place].priority)
        chosen: dict[int, Column] = {}
        for place in by_priority:
            trial = {**chosen, place: narrow(columns[place])}
            if columns[place].priority == 0 or (columns[place].priority <= _LEADING and fits(shown(trial))):
                chosen = trial
        for place in by_priority:
            for shape in (columns[place], narrow(columns[place])):
                trial = {**chosen, place: shape}
                if fits(shown(trial)):
                    chosen = trial
                    break
        table = replace(table, columns=tuple(shown(chosen)))
    return table.split(fits)


def _needed(columns: Sequence[Column], width: int) -> list[int]:
    """Return how many characters each column needs; those of sentences can do with fewer than they have."""
    found = []
    for column in columns:
        lines = [line for cell in _cells(column, width) for line in cell.split("\n")]
        body = max(map(cell_len, lines), default=0)
        body = min(body, _TEXT) if column.kind == "text" else body
        found.append(max(body, 0, *map(cell_len, column.head(body))))
    return found


def _cells(column: Column, width: int) -> list[str]:
    if column.kind == "label":
        return [fold_label(text, max(20, width // 3)) for text in column.texts]
    return [RichLine(text).plain for text in column.texts]


def _grids(table: Table, width: int) -> Iterator[Grid | Text]:
    """Yield the grid of each group of rows, all with the same widths, and their headings."""
    cells = [_cells(column, width) for column in table.columns]
    widths = _needed(table.columns, width)
    heads = [column.head(needed) for column, needed in zip(table.columns, widths, strict=True)]
    lines = max(map(len, heads))  # headers stand at the bottom, cells at the top
    spare = width - sum(widths) - _BETWEEN * (len(widths) - 1)
    if table.groups and spare >= _INDENT:
        cells[0] = [textwrap.indent(cell, " " * _INDENT) for cell in cells[0]]
        widths[0], spare = widths[0] + _INDENT, spare - _INDENT
    for place, column in enumerate(table.columns):
        if column.kind == "text":  # what is left belongs to sentences
            longest = max((cell_len(cell) for cell in cells[place]), default=0)
            more = max(0, min(spare, longest - widths[place]))
            widths[place], spare = widths[place] + more, spare - more
    headings = dict(table.groups)
    starts = [0, *sorted(headings)]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], table.rows], strict=True)):
        grid = Grid(
            box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim",
            show_header=number == 0 and any(heads),
        )  # fmt: skip
        for column, head, room in zip(table.columns, heads, widths, strict=True):
            text = Text("\n".join([""] * (lines - len(head)) + head))
            justify: JustifyMethod = "left" if column.left else "right"
            grid.add_column(text, justify=justify, width=room, overflow="fold", no_wrap=column.kind != "text")
        for row in range(start, end):
            tone = table.tones[row] if table.tones else ""
            grid.add_row(
                *(
                    Text(texts[row], STYLES[(column.tones and column.tones[row]) or tone])
                    for column, texts in zip(table.columns, cells, strict=True)
                )
            )
        if number:
            yield RichLine(headings[start], "dim")
        yield grid
