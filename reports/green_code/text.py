"""The grid in a terminal: one block per model and task, a table per quantity, nothing wider than the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from harness.appearance.terminal import Line, Text
from reports.green_code.table import GridComparison
from reports.green_code.words import (
    TextTable,
    absolute_table,
    caveats,
    heading,
    matched_table,
    quantity_tables,
    remarks,
)

__all__ = ["render_grid"]

ROOMY, WIDE = 96, 150
"""Characters from which the matched points' cached column, and the absolute numbers, have room."""


def render_grid(comparison: GridComparison, width: int = 80) -> RenderableType:
    """Return the grid for a terminal of so many characters."""
    parts: list[RenderableType] = []
    for table in comparison.tables:
        parts += [Text(), Line(f"{table.task} · {table.model}: the paper's grid, and ours", "bold")]
        parts += [Line(line, "dim") for line in heading(table)]
        quantities = list(quantity_tables(table, every=False, decimals=1 if width >= ROOMY else 0))
        parts += [Text(), _stacked(quantities)] if quantities else []
        matched = matched_table(table, cached=width >= ROOMY)
        parts += [Text(), Text(matched.title, "bold"), _table(matched)]
        if width >= WIDE:
            parts += [Text(), Text(absolute_table(table).title, "bold"), _table(absolute_table(table))]
        parts += [Line(f"• {line}", "dim") for line in remarks(table)]
        disturbed = [note for note in table.notes if "windows are flagged" in note and not note.startswith("untuned")]
        parts += [Line(f"• {note}", "dim") for note in disturbed]
        if more := len(table.notes) - len(disturbed):
            parts.append(Text(f"• {more} more notes on these runs are in grid.md", "dim"))
    return Group(*parts, Text(), *(Line(f"• {line}", "dim") for line in caveats(comparison)))


def _stacked(tables: list[TextTable]) -> Table:
    """Several tables of the same columns as one, so that they line up."""
    grid = _grid(tables[0].header)
    for table in tables:
        grid.add_row(Text(table.title, "bold"), *("" for _ in table.header[1:]))
        for label, *cells in table.rows:
            grid.add_row(Line(f"  {label}"), *(Text(cell) for cell in cells))
    return grid


def _table(table: TextTable) -> Table:
    grid = _grid(table.header)
    for row in table.rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid


def _grid(header: tuple[str, ...]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    for place, name in enumerate(header):
        grid.add_column(Text(name), justify="right" if place else "left", vertical="bottom", no_wrap=True)
    return grid
