r"""Tables of runs as LaTeX: booktabs, whatever names and texts hold.

The file compiles by itself, and ``\input`` puts its tables into a document that has loaded ``booktabs``. pdfLaTeX knows
few characters, so that what it may not know is written as its nearest Latin letter or as its code point.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from harness.appearance.visible_text import one_line
from reports.metrics.energy import ENERGY_PER_TOKEN
from reports.recorded import RecordedRun
from reports.tables.acceptance_columns import ACCEPTANCE_NOTE, acceptance_sections
from reports.tables.attribution_table import TextTable, attribution_notes, attribution_tables
from reports.tables.columns import Column, columns_of, headline_columns
from reports.tables.draft_lengths import draft_length_table
from reports.tables.hypervolume_table import NOTE, hypervolume_tables
from reports.tables.result import ResultTable, mark, split_tables

__all__ = ["escape_latex", "to_latex"]

Cell: TypeAlias = str | tuple[str]
"""A text, or the name of something in a tuple: names are set in typewriter."""

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"{\char34}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
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
    """Return LaTeX that prints a text of one line as it stands, in any engine."""
    apart = re.sub(r"([-,])(?=\1)", "\\1\ue000", one_line(text))  # two hyphens or commas would become one character
    return "".join(_character(character) for character in apart)


def to_latex(runs: Sequence[tuple[str, RecordedRun]]) -> str:
    """Return a LaTeX file with the headline, overhead and hypervolume tables of runs, each given with its name."""
    parts = [_PREAMBLE]
    for name, run in runs:
        parts.append(f"\n% {_commented(name)}")
        warning = [f"{name} is not complete: {run.state}"] if run.state else []
        tables = list(_tables(name, run, warning))
        if warning and not tables:
            parts.append(f"\n\\noindent {escape_latex(warning[0])}.\\par")
        parts.extend(tables)
    return "\n".join([*parts, "\n\\endoftables\n"])


def _tables(name: str, run: RecordedRun, warning: Sequence[str]) -> Iterator[str]:
    for table in split_tables(run.summary):
        if any(row.n for row in table.rows):
            yield _headline(name, table, warning)
            for title, columns in acceptance_sections(table):
                yield _columns(f"{name}: {title}, {table.heading}.", [*warning, ACCEPTANCE_NOTE], table, columns)
            lengths = draft_length_table(table)
            if lengths is not None:
                yield _text_table(f"{name}: {lengths.title}, {table.heading}.", warning, lengths)
    for task, text in hypervolume_tables(run):
        yield _text_table(f"{name}: {text.title}, {task}.", [*warning, NOTE], text)
    for attribution in run.summary.attributions:
        notes = [*warning, *attribution_notes(attribution)]
        for text in attribution_tables(attribution):
            yield _text_table(f"{name}: {text.title}, {attribution.where}.", notes, text)


def _headline(name: str, table: ResultTable, warning: Sequence[str]) -> str:
    columns = columns_of(table)
    shown = headline_columns(table, columns)
    labelled = [line.partition(" ") for line in table.subheadings]
    facts = [f"{label.capitalize()}: {text.strip()}" for label, _, text in labelled]
    notes = [
        "● on the Pareto front; ◇ an upper bound, not a candidate; * differs from full depth (Holm-corrected "
        "p ≤ 0.05); brackets: 95 % intervals, or too few blocks or samples for one."
    ]
    if any(row.value(ENERGY_PER_TOKEN) is not None and not row.energy_measured for row in table.rows):
        notes.append("Energy is an estimate from CPU time, not a measurement, and decides no ranking.")
    return _columns(f"{name}: {table.heading}.", [*warning, *facts, *notes], table, shown)


def _columns(title: str, notes: Sequence[str], table: ResultTable, shown: Sequence[Column]) -> str:
    header = ["", "", "operating point", *(f"{column.term}\n{column.unit}" for column in shown)]
    rows: list[list[Cell]] = [
        [mark(row).strip(), letter, (row.operating_point,), *(column.cells[index] for column in shown)]
        for index, (row, letter) in enumerate(zip(table.rows, table.letters, strict=True))
    ]
    spec = "ccl" + "".join("l" if column.left else "r" for column in shown)
    return _tabular(title, notes, spec, header, rows)


def _text_table(title: str, notes: Sequence[str], table: TextTable) -> str:
    rows: list[list[Cell]] = [[(row[0],), *row[1:]] for row in table.rows]
    return _tabular(title, notes, "l" + "r" * (len(table.header) - 1), list(table.header), rows)


def _tabular(title: str, notes: Sequence[str], spec: str, header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Return one table environment."""
    lines = [
        r"\begin{table}[htbp]",
        r"  \centering\footnotesize\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
        rf"  \caption{{{escape_latex(title)} {escape_latex(' '.join(_sentence(note) for note in notes))}}}",
        rf"  \begin{{tabular}}{{@{{}}{spec}@{{}}}}",
        r"    \toprule",
        *(f"    {' & '.join(cells)} \\\\" for cells in _header_lines(header)),
        r"    \midrule",
        *(f"    {' & '.join(_cell(cell) for cell in row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n" + "\n".join(lines)


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
