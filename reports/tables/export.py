"""Files of a summary: ``summary.json`` for programs, ``summary.csv`` for spreadsheets, ``report.md`` for people.

JSON is the summary itself and reads back equal. CSV is the flat view of :mod:`reports.tables.frame`, with a ``'``
before a text that begins like a formula; ``acceptance.csv`` has a line per group of drafted tokens. Markdown has
the terminal's tables in full, with the same notes. What is hidden in a name is an escape in all of them
(:mod:`harness.appearance.visible_text`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness.appearance.visible_text import escape_json
from harness.records.cost import Attribution
from harness.records.summary import Summary
from harness.store.seals import sealed_document
from reports.files import write_files
from reports.metrics.sections import AGAINST_FULL, DRAFTS
from reports.summary.pareto import unmarked
from reports.tables.acceptance_columns import ACCEPTANCE_COLUMNS, ACCEPTANCE_NOTE, acceptance_lines, acceptance_sections
from reports.tables.attribution_table import TextTable, attribution_notes, attribution_tables
from reports.tables.columns import (
    Column,
    columns_of,
    explanations,
    headline_columns,
    section_columns,
    section_titles,
    unmeasured,
    verdicts,
)
from reports.tables.csv_text import csv_text
from reports.tables.draft_lengths import draft_length_table
from reports.tables.frame import column_names, flat
from reports.tables.markdown import escape_markdown, markdown_code, markdown_row
from reports.tables.plot import draw_front
from reports.tables.result import HEADLINE_TITLE, ResultTable, legend, mark, split_tables

__all__ = [
    "ACCEPTANCE_FILE",
    "FILES",
    "acceptance_csv",
    "markdown_legend",
    "markdown_results",
    "markdown_table",
    "runs_to_csv",
    "to_csv",
    "to_json",
    "to_markdown",
    "write_report",
]

FILES = ("summary.json", "summary.csv", "report.md")
ACCEPTANCE_FILE = "acceptance.csv"


def to_json(summary: Summary) -> str:
    """Return the summary as indented JSON with its seal; ``Summary.model_validate_json`` reads it back."""
    document, _ = sealed_document(escape_json(summary.model_dump_json(indent=2)).encode() + b"\n")
    return document.decode()


def to_csv(summary: Summary) -> str:
    """Return one line per row under a header; the columns are those of :func:`to_frame`."""
    return csv_text(column_names(summary.rows), flat(summary))


def runs_to_csv(summaries: Iterable[tuple[str, Summary]]) -> str:
    """Return the lines of several runs under one header, with the name given to each run in the first column."""
    named = list(summaries)
    names = column_names(row for _, summary in named for row in summary.rows)
    return csv_text(["run", *names], ({"run": name, **values} for name, summary in named for values in flat(summary)))


def acceptance_csv(summaries: Iterable[tuple[str, Summary]]) -> dict[str, str]:
    """Return name → text of the file of drafted tokens that stood; none where nothing was drafted.

    A run's name, where it has one, is in the first column. What a line is all of (sources, layers, kinds) is empty.
    """
    lines = [
        ({"run": name} if name else {}) | line for name, summary in summaries for line in acceptance_lines(summary)
    ]
    named = ["run"] if any("run" in line for line in lines) else []
    return {ACCEPTANCE_FILE: csv_text([*named, *ACCEPTANCE_COLUMNS], lines)} if lines else {}


def to_markdown(summary: Summary) -> str:
    """Return a report that GitHub renders: per table the headline, the Pareto plot and the details; then notes."""
    lines = ["# Early-exit benchmark report", *markdown_results(summary), *markdown_legend(summary)]
    if summary.notes:
        lines.extend(["", "## Notes", "", *(f"- {escape_markdown(note)}" for note in summary.notes)])
    return "\n".join(lines) + "\n"


def markdown_results(summary: Summary, level: int = 2) -> Iterator[str]:
    """Yield the lines of all tables and attributions under headings of a level."""
    for table in split_tables(summary):
        yield from _markdown_table(table, level)
    for attribution in summary.attributions:
        yield from _markdown_attribution(attribution, level)


def markdown_legend(*summaries: Summary) -> Iterator[str]:
    """Yield the lines that explain the marks and columns of these summaries' tables."""
    rows = [row for summary in summaries for row in summary.rows]
    if rows:
        yield from ("", "## How to read this", "")
        yield from (f"- {line}" for line in legend(rows))
    for section in explanations(rows) if rows else ():
        yield from (f"- **{escape_markdown(column.term)}**: {escape_markdown(column.meaning)}" for column in section)


def markdown_table(table: TextTable) -> Iterator[str]:
    """Yield the lines of a table whose first column are names."""
    yield markdown_row(map(escape_markdown, table.header))
    yield markdown_row([":--", *("--:" for _ in table.header[1:])])
    for name, *cells in table.rows:
        yield markdown_row([markdown_code(name), *map(escape_markdown, cells)])


def write_report(summary: Summary, directory: Path) -> tuple[Path, ...]:
    """Write ``summary.json``, ``summary.csv``, ``report.md`` and, where something was drafted, ``acceptance.csv``.

    Each is replaced whole; their paths are returned.

    Raises:
        StoreError: a file cannot be written.
    """
    texts = (to_json(summary), to_csv(summary), to_markdown(summary))
    further = acceptance_csv([("", summary)])
    return write_files(directory, dict(zip(FILES, texts, strict=True)) | further)


def _markdown_table(table: ResultTable, level: int) -> Iterator[str]:
    columns = columns_of(table)
    yield from ("", f"{'#' * level} {escape_markdown(table.heading)}", "")
    for line in table.subheadings:
        label, _, text = line.partition(" ")
        yield f"- {label}: {escape_markdown(text)}"
    yield from ("", f"**{HEADLINE_TITLE}**", "", *_pipes(table, headline_columns(table, columns)))
    picture = draw_front(table)
    if picture is not None:
        yield from ("", "```text", *(line.rstrip() for line in picture.plain.splitlines()), "```")
        if why := unmarked(table.rows):
            yield from ("", why)
    for title in section_titles(columns):
        chosen = section_columns(title, columns)
        if title == AGAINST_FULL:
            chosen.append(Column("verdict", "in words", verdicts(table), "what may be said", left=True))
        if any(not column.empty for column in chosen):
            yield from ("", f"**{title}**", "", *_pipes(table, chosen))
        further = list(acceptance_sections(table)) if title == DRAFTS else []
        for drafts, shares in further:
            yield from ("", f"**{escape_markdown(drafts)}**", "", *_pipes(table, shares))
        if further:
            yield from ("", escape_markdown(ACCEPTANCE_NOTE))
    lengths = draft_length_table(table)
    if lengths is not None:
        yield from ("", f"**{escape_markdown(lengths.title)}**", "", *markdown_table(lengths))
    absent = unmeasured(columns)
    if absent:
        yield from ("", escape_markdown(absent))


def _pipes(table: ResultTable, columns: Sequence[Column]) -> Iterator[str]:
    yield markdown_row(["", "", "operating point", *(_header(column) for column in columns)])
    yield markdown_row([":-:", ":-:", ":--", *(":--" if column.left else "--:" for column in columns)])
    for index, (row, letter) in enumerate(zip(table.rows, table.letters, strict=True)):
        yield markdown_row(
            [
                mark(row).strip(),
                letter,
                markdown_code(row.operating_point),
                *(escape_markdown(column.cells[index]) for column in columns),
            ]
        )


def _header(column: Column) -> str:
    return "<br>".join(escape_markdown(line) for line in (column.term, column.unit) if line)


def _markdown_attribution(attribution: Attribution, level: int) -> Iterator[str]:
    yield from ("", f"{'#' * level} {escape_markdown(attribution.where)} · where the {attribution.quantity} goes")
    for table in attribution_tables(attribution):
        yield from ("", f"**{escape_markdown(table.title)}**", "")
        yield from markdown_table(table)
    yield ""
    yield from (f"- {escape_markdown(note)}" for note in attribution_notes(attribution))
