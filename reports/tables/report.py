"""A report of a summary, on a screen and as files, and what stands around its tables: how to read them, and notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from harness.appearance.visible_text import escape_json
from harness.records.estimate import MISSING
from harness.records.summary import Summary
from harness.store.record_files import sealed_document
from reports.files import write_files
from reports.metrics.energy import ENERGY_PER_TOKEN
from reports.recorded import RecordedRun
from reports.tables.frame import acceptance_csv, summary_csv
from reports.tables.result import (
    LEGEND,
    ResultTable,
    explanations,
    headline_columns,
    is_candidate,
    legend,
    mark,
    split_tables,
)
from reports.tables.run_tables import headline, of_summary, parts_of
from reports.tables.table import Column, Facts, Heading, Line, Part, Table
from reports.tables.writers import Document, to_markdown, to_terminal

FILES = ("summary.json", "summary.csv", "report.md")
HEADING = "# Early-exit benchmark report"
_BRIEF = 100  # columns of a terminal that a run's end needs at most


def render(summary: Summary) -> Document:
    """Return a rich renderable of a whole summary; print it with any ``rich.console.Console``."""
    return to_terminal(report(summary))


def report(summary: Summary) -> Iterator[Part]:
    """Yield every table of a summary, how to read them, and its notes."""
    yield from (*of_summary(summary), *how_to_read([summary]), *notes_of(summary))


def to_json(summary: Summary) -> str:
    """Return the summary as indented JSON with its seal; ``Summary.model_validate_json`` reads it back equal."""
    document, _ = sealed_document(escape_json(summary.model_dump_json(indent=2)).encode() + b"\n")
    return document.decode()


def report_markdown(summary: Summary) -> str:
    """Return a report that GitHub renders: the terminal's tables in full, with the same notes."""
    return "\n".join([HEADING, *to_markdown(report(summary))]) + "\n"


def write_report(summary: Summary, directory: Path) -> tuple[Path, ...]:
    """Write ``summary.json``, ``summary.csv``, ``report.md`` and, where something was drafted, ``acceptance.csv``.

    Each is replaced whole; their paths are returned.
    """
    texts = (to_json(summary), summary_csv(summary), report_markdown(summary))
    further = acceptance_csv([("", summary)])
    return write_files(directory, dict(zip(FILES, texts, strict=True)) | further)


def how_to_read(summaries: Iterable[Summary]) -> Iterator[Part]:
    """Yield what the marks and columns of these summaries' tables mean."""
    rows = [row for summary in summaries for row in summary.rows]
    if rows:
        yield Heading("How to read this")
        yield Facts(legend(rows))
        yield from (
            Facts(tuple((column.term, column.meaning) for column in section), flowing=True)
            for section in explanations(rows)
            if section
        )


def notes_of(summary: Summary) -> Iterator[Part]:
    """Yield the notes under a heading, the most misleading first."""
    if summary.notes:
        yield Heading("Notes")
        yield from (Line(note, bullet=True) for note in summary.notes)


def brief(summary: Summary) -> Document:
    """Return what a run ends with: what each table comes to and its headline, and the first note."""
    parts: list[Part] = []
    for table in split_tables(summary):
        parts += [Heading(table.heading), *headline(table)]
        if any(row.pareto or not is_candidate(row) for row in table.rows):
            words = "● on the front of exact prefix and speed-up · ◇ upper bound (not deployable)"
            parts.append(Line(words, "faint"))
    if summary.notes:
        parts += [Line(""), Line(f"First of {len(summary.notes)} notes: {summary.notes[0]}", "faint")]
    return to_terminal(parts, widest=_BRIEF)


def detailed(runs: Iterable[tuple[str, RecordedRun]]) -> Iterator[Part]:
    """Yield every table of each run, titled so that it can stand alone, for documents without headings."""
    for name, run in runs:
        yield Heading(name)
        warning = (f"{name} is not complete: {run.state}",) if run.state else ()
        heading = ""
        for part in parts_of(run):
            match part:
                case Heading():
                    heading = part.text
                case Table():
                    title = f"{name}: {part.title}{f', {heading}' if heading else ''}"
                    yield replace(part, title=title, name=f"{name} {part.title}", notes=(*warning, *part.notes))


def task_tables(runs: Sequence[tuple[str, RecordedRun]]) -> list[Table]:
    """Return one table per task and protocol that some run finished a sample of, in order of first appearance.

    Rows of different runs, which come with their names in the report, stand in groups: they share columns and units,
    and every comparison in a row is with full depth of its own run.
    """
    found: dict[tuple[str, str], list[tuple[str, RecordedRun, ResultTable]]] = {}
    for name, run in runs:
        for table in split_tables(run.summary):
            if any(row.n for row in table.rows):
                found.setdefault((table.rows[0].task, table.rows[0].protocol), []).append((name, run, table))
    tasks = [task for task, _ in found]
    return [
        replace(_together(groups), name=f"{task} {protocol}" if tasks.count(task) > 1 else task)
        for (task, protocol), groups in found.items()
    ]


def _together(groups: Sequence[tuple[str, RecordedRun, ResultTable]]) -> Table:
    rows = [row for _, _, table in groups for row in table.rows]
    several, runs = len(groups) > 1, len({name for name, _, _ in groups})
    shown = headline_columns(rows, counts=any(table.uneven for _, _, table in groups))
    columns = (
        Column(header="", cells=tuple(mark(row).strip() for row in rows), kind="text", name="mark"),
        Column(header="operating point", cells=tuple(row.operating_point for row in rows), kind="label"),
        *(column for column in shown if column.name not in ("kv", "keep") or len(set(column.cells)) > 1),
    )
    written = " ".join(text for column in columns for text in column.texts)
    notes = [
        f"{sign}{':' * sign.isascii()} {meaning}."
        for sign, meaning in LEGEND
        if sign == "*" or (sign in written and sign != MISSING)
    ]
    notes.append("Brackets: 95 % intervals.")
    with_energy = [row for row in rows if row.value(ENERGY_PER_TOKEN) is not None]
    if not all(row.energy_measured for row in with_energy):
        notes.append("Energy that no sensor read is an estimate and decides no ranking.")
    headings, start = [], 0
    for name, run, table in groups:
        row = table.rows[0]
        headings.append((start, f"{name}: {row.model}, {row.weights} weights, {table.numbers}, {table.size}"))
        start += len(table.rows)
        facts = [f"{name} is not complete: {run.state}."] if run.state else [f"{name}."] * several
        facts += [f"{label.capitalize()}: {text}." for label, text in table.facts]
        facts += [f"Energy: {row.energy_source}."] * (len({one.energy_source for one in with_energy}) > 1)
        notes.append(" ".join(facts))
    size = f"{runs} runs" if runs > 1 else groups[0][2].size
    task = f"{rows[0].task} ({rows[0].protocol})"
    return Table(
        title=f"Quality and cost on {task}, {size}. Speed-ups are over full depth of the same run.",
        columns=columns,
        notes=tuple(notes),
        groups=tuple(headings) if several else (),
    )
