"""Files of a summary: ``summary.json`` for programs, ``summary.csv`` for spreadsheets, ``report.md`` for people.

JSON is the summary itself and reads back equal. CSV is the flat view of :mod:`reports.tables.frame`, with a ``'``
before a text that begins like a formula; ``acceptance.csv`` has a line per group of drafted tokens. Markdown has
the terminal's tables in full, with the same notes. What is hidden in a name is an escape in all of them
(:mod:`harness.appearance.visible_text`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.appearance.visible_text import escape_json
from harness.records.acceptance import Acceptance
from harness.records.summary import Summary
from harness.store.seals import sealed_document
from reports.files import write_files
from reports.tables.csv_text import csv_text
from reports.tables.frame import column_names, flat
from reports.tables.report import report
from reports.tables.writers import to_markdown as markdown_lines

__all__ = [
    "ACCEPTANCE_FILE",
    "FILES",
    "HEADING",
    "acceptance_csv",
    "runs_to_csv",
    "to_csv",
    "to_json",
    "to_markdown",
    "write_report",
]

FILES = ("summary.json", "summary.csv", "report.md")
ACCEPTANCE_FILE = "acceptance.csv"
HEADING = "# Early-exit benchmark report"
_ACCEPTANCE_COLUMNS = ("task", "operating_point", *Acceptance.model_fields, "low", "high")


def to_json(summary: Summary) -> str:
    """Return the summary as indented JSON with its seal; ``Summary.model_validate_json`` reads it back."""
    document, _ = sealed_document(escape_json(summary.model_dump_json(indent=2)).encode() + b"\n")
    return document.decode()


def to_csv(summary: Summary) -> str:
    """Return one line per row under a header; the columns are those of :func:`reports.tables.frame.to_frame`."""
    return csv_text(column_names(summary.rows), flat(summary))


def to_markdown(summary: Summary) -> str:
    """Return a report that GitHub renders: the tables of each task, its Pareto plot, and notes."""
    return "\n".join([HEADING, *markdown_lines(report(summary))]) + "\n"


def runs_to_csv(summaries: Iterable[tuple[str, Summary]]) -> str:
    """Return the lines of several runs under one header, with the name given to each run in the first column."""
    named = list(summaries)
    names = column_names(row for _, summary in named for row in summary.rows)
    return csv_text(["run", *names], ({"run": name, **values} for name, summary in named for values in flat(summary)))


def acceptance_csv(summaries: Iterable[tuple[str, Summary]]) -> dict[str, str]:
    """Return name → text of the file of drafted tokens that stood; none where nothing was drafted.

    A run's name, where it has one, is in the first column. What a line is all of (sources, layers, kinds) is empty.
    """
    lines = [({"run": name} if name else {}) | line for name, summary in summaries for line in _acceptances(summary)]
    named = ["run"] if any("run" in line for line in lines) else []
    return {ACCEPTANCE_FILE: csv_text([*named, *_ACCEPTANCE_COLUMNS], lines)} if lines else {}


def write_report(summary: Summary, directory: Path) -> tuple[Path, ...]:
    """Write ``summary.json``, ``summary.csv``, ``report.md`` and, where something was drafted, ``acceptance.csv``.

    Each is replaced whole; their paths are returned.

    Raises:
        StoreError: a file cannot be written.
    """
    texts = (to_json(summary), to_csv(summary), to_markdown(summary))
    further = acceptance_csv([("", summary)])
    return write_files(directory, dict(zip(FILES, texts, strict=True)) | further)


def _acceptances(summary: Summary) -> Iterator[dict[str, object]]:
    for row in summary.rows:
        for one in row.acceptances:
            share = dict(zip(("low", "high"), one.share.interval or (), strict=False))
            counts = one.model_dump(exclude={"share"}, exclude_none=True)
            yield {
                "task": row.task, "operating_point": row.operating_point, **counts, "share": one.share.value, **share,
            }  # fmt: skip
