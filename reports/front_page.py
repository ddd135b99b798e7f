"""The front page of a report, ``index.html``: its tables and figures, with links to completions, notes and all files.

The page stands alone: no network and no script, light and dark as the reader's system is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.appearance.pages import templates
from reports.figures.catalogue import Page
from reports.figures.figure import Figure
from reports.figures.layout import INCHES, Width
from reports.tables.table import Table

__all__ = ["HEAD", "front_page"]

HEAD = "<!doctype html>\n<!-- A report of `harness report`. -->"
"""How the page begins, which tells it from other people's."""


def front_page(
    overview: Table,
    tables: Sequence[Table],
    details: Sequence[Table],
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
        overview: the table of runs.
        tables: one per task.
        details: every table of single runs, folded up.
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
            tables=tables,
            details=details,
            figures=figures,
            folder=folder,
            undrawn=undrawn,
            pages=pages,
            notes=shown,
            inches=INCHES[width],
        )
    )
