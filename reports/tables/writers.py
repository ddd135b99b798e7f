"""Writers of tables, one per output: what a table shows is decided before, how it looks only here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as Grid

from harness.appearance.terminal import Line as RichLine
from harness.appearance.terminal import Text
from reports.tables.table import Column, Line, Table, Tone

__all__ = ["TerminalTable", "to_terminal"]

_STYLES: dict[Tone, str] = {
    "": "", "strong": "bold", "faint": "dim", "good": "green", "bad": "red", "doubtful": "yellow"
}  # fmt: skip


def to_terminal(parts: Iterable[Table | Line]) -> RenderableType:
    """Return tables and lines as one rich renderable, each table as wide as the screen allows."""
    return Group(*_renderables(parts))


def _renderables(parts: Iterable[Table | Line]) -> Iterator[RenderableType]:
    for part in parts:
        if isinstance(part, Line):
            yield RichLine(part.text, _STYLES[part.tone])
        else:
            yield TerminalTable(part)


class TerminalTable:
    """A table in a terminal: columns that do not fit lose their intervals, then go, or stand in a further table."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, grid and notes."""
        yield Text()
        if self.table.title:
            yield RichLine(self.table.title, "bold")
        for place, columns in enumerate(self._pages(console, options)):
            if place:
                yield Text()
            yield self._grid(columns, options)
        for note in self.table.notes:
            yield RichLine(note, "dim")

    def _pages(self, console: Console, options: ConsoleOptions) -> list[list[Column]]:
        return [list(self.table.columns)]

    def _fits(self, columns: list[Column], console: Console, options: ConsoleOptions) -> bool:
        open_wide = options.update(width=10_000)
        return Measurement.get(console, open_wide, self._grid(columns, options)).maximum <= options.max_width

    def _grid(self, columns: list[Column], options: ConsoleOptions) -> Grid:
        grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
        for column in columns:
            header = Text("\n".join(filter(None, (column.header, column.unit))))
            justify: JustifyMethod = "right" if column.kind == "number" else "left"
            grid.add_column(header, justify=justify, no_wrap=True, vertical="bottom")
        texts = [column.texts for column in columns]
        nothing: Tone = ""
        tones = self.table.tones or (nothing,) * self.table.rows
        headings = dict(self.table.groups)
        for row, tone in enumerate(tones):
            if row in headings:
                grid.add_row(Text(headings[row], "dim"))
            grid.add_row(
                *(
                    Text(cells[row], _STYLES[column.tones[row] if column.tones else tone])
                    for column, cells in zip(columns, texts, strict=True)
                )
            )
        return grid
