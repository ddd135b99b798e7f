"""The front page of a report, ``index.html``: its tables and figures, with links to completions, notes and all files.

The page stands alone: no network and no script, light and dark as the reader's system is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.appearance.pages import templates
from reports.figures.catalogue import Page
from reports.figures.figure import Figure
from reports.figures.layout import INCHES, Width
from reports.tables.result import mark
from reports.tables.task_results import Group, TaskResults

__all__ = ["HEAD", "front_page"]

HEAD = "<!doctype html>\n<!-- A report of `harness report`. -->"
"""How the page begins, which tells it from other people's."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of one task, ready for the template: each group with (mark, operating point, cells) of its rows."""

    title: str
    groups: tuple[Group, ...]
    columns: Sequence[Any]
    body: list[tuple[Group, list[tuple[str, str, list[str]]]]]
    notes: list[str]


def front_page(
    overview: Sequence[Sequence[str]],
    tables: Sequence[TaskResults],
    figures: Sequence[Figure],
    pages: Sequence[Page],
    *,
    files: Mapping[str, str],
    folder: str,
    notes: Sequence[tuple[str, Sequence[str]]] = (),
    refused: Sequence[tuple[str, str]] = (),
    undrawn: str = "",
    width: Width = "text",
) -> str:
    """Return the page as HTML.

    Args:
        overview: header and rows of the table of runs.
        tables: one per task.
        figures: in reading order, in ``folder``.
        pages: completions of runs.
        files: name → what it is, of the report's other files.
        folder: where the figures are, relative to the page.
        notes: what must be known of each run, by its name.
        refused: path and reason of what could not be read.
        undrawn: why figures are missing; empty where none is.
        width: of the figures.
    """
    shown = [name for name in notes if name[1]]
    parts = [
        ("Runs", True),
        ("Tables", bool(tables)),
        ("Figures", bool(figures or undrawn)),
        ("Completions", bool(pages)),
        ("Notes", bool(shown)),
    ]
    return (
        templates("reports")
        .get_template("report.html")
        .render(
            parts=parts,
            files=list(files.items()),
            overview=overview,
            refused=refused,
            tables=list(map(_table, tables)),
            figures=figures,
            folder=folder,
            undrawn=undrawn,
            pages=pages,
            notes=shown,
            inches=INCHES[width],
        )
    )


def _table(table: TaskResults) -> _Table:
    return _Table(table.title, table.groups, table.columns, list(_body(table)), list(table.notes))


def _body(table: TaskResults) -> Iterator[tuple[Group, list[tuple[str, str, list[str]]]]]:
    place = 0
    for group in table.groups:
        rows = []
        for row in group.table.rows:
            rows.append((mark(row).strip(), row.operating_point, [column.cells[place] for column in table.columns]))
            place += 1
        yield group, rows
