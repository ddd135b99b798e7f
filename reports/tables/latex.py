r"""Tables of runs as LaTeX: booktabs, whatever names and texts hold.

The file compiles by itself, and ``\input`` puts its tables into a document that has loaded ``booktabs``. pdfLaTeX knows
few characters, so that what it may not know is written as its nearest Latin letter or as its code point.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from harness.appearance.visible_text import one_line
from harness.records.summary import SummaryRow
from reports.figures.figure import slug
from reports.recorded import RecordedRun
from reports.tables.acceptance_columns import ACCEPTANCE_NOTE, acceptance_sections
from reports.tables.attribution_table import TextTable, attribution_notes, attribution_tables
from reports.tables.columns import Column
from reports.tables.draft_lengths import draft_length_table
from reports.tables.hypervolume_table import NOTE, hypervolume_tables
from reports.tables.result import mark, split_tables
from reports.tables.task_results import TaskResults, task_results

__all__ = ["escape_latex", "to_latex", "to_latex_details"]

Cell: TypeAlias = str | tuple[str]
"""A text, or the name of something in a tuple: names are set in typewriter."""
Row: TypeAlias = Sequence[Cell] | str
"""Its cells, or the heading of the rows that follow."""

_POINTS = 504.0
"""Room for a row, 7 inches."""
_SIZES = (("footnotesize", 8.0, 9.5, 3), ("scriptsize", 7.0, 8.0, 3), ("scriptsize", 7.0, 8.0, 2))
"""Letters, their size, the height of a row, and the room on each side of a column, points: the first that fits."""
_HEIGHT = 520.0
"""Room for a table with its caption and notes, points: a page of this file, which is landscape; papers have more."""
_CAPTION = 62.0
"""What a caption of four lines takes of it."""
_RULES = 18.0
"""The same of the rules of a tabular, and what is between two."""
_NOTE_LINE, _NOTE_LETTERS = 8.0, 120
"""Height of a line of notes, points, and how many letters it has."""
_WAITING = 16
"""Tables of a file after which all that wait for a page get theirs: LaTeX lets few wait."""
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"{\char34}", "`": r"\textasciigrave{}",
    "–": "{--}", "—": "{---}", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$", "±": r"$\pm$", "−": r"$-$",
    "Δ": r"$\Delta$", "µ": r"\textmu{}", "σ": r"$\sigma$", "●": r"$\bullet$", "◇": r"$\diamond$", "…": r"\dots{}",
    "\ue000": "{}", "·": r"$\cdot$", "≈": r"$\approx$", "’": "'", "→": r"$\rightarrow$",
}  # fmt: skip
FIRST_LINE = r"% Tables of `harness report`. Compile this file as it is, or \input it where booktabs is loaded."
_PREAMBLE = (
    FIRST_LINE
    + r"""
\ifx\toprule\undefined
  \documentclass{article}
  \usepackage[T1]{fontenc}
  \IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
  \usepackage{textcomp,booktabs}
  \usepackage[landscape,margin=15mm]{geometry}
  \begin{document}
  \def\endoftables{\end{document}}
\else
  \def\endoftables{}
\fi
"""
)


def escape_latex(text: str) -> str:
    """Return LaTeX that prints a text of one line as it stands, in any engine; an apostrophe as books have it."""
    apart = re.sub(r"([-,'])(?=\1)", "\\1\ue000", one_line(text))  # two of them would become one character
    return "".join(_character(character) for character in apart)


def to_latex(runs: Sequence[tuple[str, RecordedRun]]) -> str:
    """Return a LaTeX file with one table per task of all runs, each given with its name."""
    labels = _Labels()
    parts = []
    tables = task_results(runs)
    for name, run in runs:
        if run.state and not any(group.name == name for table in tables for group in table.groups):
            parts.append(f"\n\\noindent {escape_latex(f'{name} is not complete: {run.state}')}.\\par")
    for table in tables:
        several = sum(other.task == table.task for other in tables) > 1
        label = labels.new(f"{table.task} {table.protocol}" if several else table.task)
        parts.extend(_tabular(table.title, label, list(table.notes), *_together(table)))
    return _file(parts)


def to_latex_details(runs: Sequence[tuple[str, RecordedRun]]) -> str:
    """Return a LaTeX file with the tables of drafts, overhead and hypervolume of each run, where it has them."""
    labels = _Labels()
    parts = []
    for name, run in runs:
        parts.append(f"\n% {_commented(name)}")
        warning = [f"{name} is not complete: {run.state}"] if run.state else []
        parts.extend(_details(name, run, warning, labels))
    return _file(parts)


def _file(parts: Sequence[str]) -> str:
    written = [_PREAMBLE]
    for number, part in enumerate(parts):
        written += ["\n\\clearpage"] * (number > 0 and number % _WAITING == 0)
        written.append(part)
    return "\n".join([*written, "\n\\endoftables\n"])


class _Labels:
    """Labels of one file, no two alike."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def new(self, text: str) -> str:
        stem, number = slug(text), 1
        label = stem
        while label in self._taken:
            number += 1
            label = f"{stem}-{number}"
        self._taken.add(label)
        return f"tab:{label}"


def _details(name: str, run: RecordedRun, warning: Sequence[str], labels: _Labels) -> Iterator[str]:
    def written(title: str, notes: Sequence[str], table: TextTable, where: str) -> Iterator[str]:
        label = labels.new(f"{name} {title}")
        rows: list[list[Cell]] = [[(row[0],), *row[1:]] for row in table.rows]
        spec = "l" + "r" * (len(table.header) - 1)
        return _tabular(f"{name}: {title}, {where}.", label, notes, spec, list(table.header), rows)

    for table in split_tables(run.summary):
        if any(row.n for row in table.rows):
            for title, columns in acceptance_sections(table):
                notes = [*warning, ACCEPTANCE_NOTE]
                label = labels.new(f"{name} {title}")
                spec, header, rows = _columns(table.rows, columns)
                rows = [row for row in rows if set(row[2:]) - {"–", ""}]  # who drafted none has no row
                yield from _tabular(f"{name}: {title}, {table.heading}.", label, notes, spec, header, rows)
            lengths = draft_length_table(table)
            if lengths is not None:
                yield from written(lengths.title, warning, lengths, table.heading)
    for task, text in run.once(hypervolume_tables):
        yield from written(text.title, [*warning, NOTE], text, task)
    for attribution in run.summary.attributions:
        for text in attribution_tables(attribution):
            yield from written(text.title, [*warning, *attribution_notes(attribution)], text, attribution.where)


def _together(table: TaskResults) -> tuple[str, list[str], Sequence[Row]]:
    """Return column types, header and rows of a task, a line of its own above the rows of each of several groups."""
    spec, header, rows = _columns(table.rows, table.columns)
    if len(table.groups) == 1:
        return spec, header, rows
    grouped: list[Row] = []
    start = 0
    for group in table.groups:
        end = start + len(group.table.rows)
        grouped += [group.heading, *rows[start:end]]
        start = end
    return spec, header, grouped


def _columns(rows: Sequence[SummaryRow], shown: Sequence[Column]) -> tuple[str, list[str], list[list[Cell]]]:
    marks = [mark(row).strip() for row in rows]
    header = ["", "operating point", *(column.lines for column in shown)]
    cells: list[list[Cell]] = [
        [marks[index], (row.operating_point,), *(column.cells[index] for column in shown)]
        for index, row in enumerate(rows)
    ]
    return "cl" + "".join("l" if column.left else "r" for column in shown), header, cells


def _tabular(
    title: str, label: str, notes: Sequence[str], spec: str, header: Sequence[str], rows: Sequence[Row]
) -> Iterator[str]:
    """Yield the environments of a table, one for each page that its rows and notes fill; they share a number."""
    layout = _layout(header, [row for row in rows if not isinstance(row, str)])
    for number, (shown, below) in enumerate(_pages(layout, header, rows, notes)):
        caption = f"{title.rstrip('.')} (continued)." if number else title
        lines = [
            r"\begin{table*}[htbp]",
            *[r"  \addtocounter{table}{-1}"] * (number > 0),
            rf"  \centering\{layout.size}\setlength{{\tabcolsep}}{{{layout.room}pt}}"
            r"\setlength{\belowcaptionskip}{4pt}",
            rf"  \caption{{{escape_latex(caption)}}}",
            *[rf"  \label{{{label}}}"] * (number == 0),
        ]
        for place, columns in enumerate(layout.blocks if shown or not number else ()):
            lines += [r"  \par\vspace{6pt}"] * (place > 0)
            lines += _block(spec, header, shown, columns)
        yield "\n" + "\n".join([*lines, *_below(below), r"\end{table*}"])


def _pages(
    layout: _Layout, header: Sequence[str], rows: Sequence[Row], notes: Sequence[str]
) -> list[tuple[list[Row], list[str]]]:
    """Cut a table into what stands on one page each: rows, below the last ones notes, which may go on as well.

    A heading has the room of two rows and is written again above those of its rows that go on.
    """
    step = layout.line * len(layout.blocks)
    page = _HEIGHT - _CAPTION
    above = len(layout.blocks) * (_RULES + layout.line * len(list(_header_lines(header))))
    pages: list[tuple[list[Row], list[str]]] = [([], [])]
    left, heading, due = page - above, "", ""
    for row in rows:
        if isinstance(row, str):
            heading = due = row
            continue
        if left < step * (3 if due else 1) and pages[-1][0]:
            pages.append(([], []))
            left = page - above
            due = due or (f"{heading} (continued)" if heading else "")
        if due:
            pages[-1][0].append(due)
            left, due = left - 2 * step, ""
        pages[-1][0].append(row)
        left -= step
    for note in map(_sentence, notes):
        height = _NOTE_LINE * -(-len(note) // _NOTE_LETTERS)
        if left < height:
            pages.append(([], []))
            left = page
        pages[-1][1].append(note)
        left -= height
    return pages


def _block(spec: str, header: Sequence[str], rows: Sequence[Row], places: Sequence[int]) -> Iterator[str]:
    """Yield a tabular of some of the columns."""
    yield rf"  \begin{{tabular}}{{@{{}}{''.join(spec[place] for place in places)}@{{}}}}"
    yield r"    \toprule"
    for cells in _header_lines([header[place] for place in places]):
        yield f"    {' & '.join(cells)} \\\\"
    yield r"    \midrule"
    for number, row in enumerate(rows):
        if not isinstance(row, str):
            yield f"    {' & '.join(_cell(row[place]) for place in places)} \\\\"
        else:
            if number:
                yield r"    \addlinespace"
            yield rf"    \multicolumn{{{len(places)}}}{{@{{}}l}}{{\emph{{{_cell(row)}}}}} \\"
    yield r"    \bottomrule"
    yield r"  \end{tabular}"


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a table is set.

    Attributes:
        size: of its letters.
        line: height of a row, points.
        room: on each side of a column, points.
        blocks: columns of each tabular, several where one would be too wide.
    """

    size: str
    line: float
    room: int
    blocks: list[list[int]]


def _layout(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> _Layout:
    cells = [[max(cell.split("\n"), key=_ems) for cell in header], *rows]
    ems = [max(_ems(row[place]) for row in cells) for place in range(len(header))]
    for size, points, line, room in _SIZES:
        widths = [points * wide + 2 * room for wide in ems]
        if sum(widths) <= _POINTS:
            return _Layout(size, line, room, [list(range(len(header)))])
    names = list(range(1 if header[0] else 2))
    if sum(widths[one] for one in names) > _POINTS / 2:
        return _Layout(size, line, room, [list(range(len(header)))])  # names alone leave little room for more
    blocks: list[list[int]] = [[*names]]
    for place in range(len(names), len(header)):
        if len(blocks[-1]) > len(names) and sum(widths[one] for one in (*blocks[-1], place)) > _POINTS:
            blocks.append([*names])
        blocks[-1].append(place)
    return _Layout(size, line, room, blocks)


def _ems(cell: Cell) -> float:
    """Return about how wide Computer Modern sets a cell at 7 points, in sizes of the letter; a little less at 8."""
    if isinstance(cell, tuple):
        return 0.531 * len(cell[0])
    return sum(
        0.34 if one in " .,:;[]()|'ijlftr/" else 0.9 if one in "×±≥≤−Δ●◇mw%–ABCDGHMNOQUVWX" else 0.57 for one in cell
    )


def _below(notes: Sequence[str]) -> Iterator[str]:
    """Yield what stands under a table, so that its caption stays short."""
    if notes:
        text = escape_latex(" ".join(notes))
        yield rf"  \par\vspace{{3pt}}\begin{{minipage}}{{\linewidth}}\raggedright\scriptsize {text}\end{{minipage}}"


def _header_lines(header: Sequence[str]) -> Iterator[list[str]]:
    """Yield a header's one or two lines."""
    split = [cell.partition("\n")[::2] for cell in header]
    for place in (0, 1):
        cells = [escape_latex(parts[place]) for parts in split]
        if any(cells):
            yield cells


def _cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return rf"\texttt{{{escape_latex(cell[0])}}}"
    return escape_latex(re.sub(r"(?<![\w.])-(?=\d)", "−", cell))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii():
        return character
    if "À" <= character <= "ÿ":
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(_SPECIAL.get(one, one) for one in plain) if plain.strip() else f"[U+{ord(character):04X}]"


def _commented(text: str) -> str:
    return one_line(text).encode("ascii", "replace").decode()
