r"""The writer of tables for LaTeX: booktabs, whatever names and texts hold, on as many pages as they take.

The file compiles by itself, and ``\input`` puts its tables into a document that has loaded ``booktabs``, of one column
or two (``longtable`` knows no second one, so that pages are cut here). pdfLaTeX knows few characters, so that what it
may not know is written as its nearest Latin letter or as its code point.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial

from harness.appearance.visible_text import one_line
from reports.figures.drawing import slug
from reports.tables.table import Column, Heading, Line, Part, Table

_POINTS = 504.0
"""Room for a row, 7 inches."""
_SENTENCE = 170.0
"""Points after which a column of sentences breaks its lines."""
_SIZES = (("footnotesize", 8.0, 9.5, 3), ("scriptsize", 7.0, 8.0, 3), ("scriptsize", 7.0, 8.0, 2))
"""Letters, their size, the height of a row, and the room on each side of a column, points: the first that fits."""
_HEIGHT = 520.0
"""Room for a table with its caption and notes, points: a page of this file, which is landscape; papers have more."""
_CAPTION = 62.0
"""The share of it that a caption of four lines takes."""
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


@lru_cache(maxsize=10_000)  # cells are alike
def escape_latex(text: str) -> str:
    """Return LaTeX that prints a text of one line as it stands, in any engine; an apostrophe as books have it."""
    apart = re.sub(r"([-,'])(?=\1)", "\\1\ue000", one_line(text))  # two of them would become one character
    return re.sub(r"[^A-Za-z0-9 .,:;()\[\]-]", lambda found: _character(found[0]), apart)


def to_latex(parts: Iterable[Part]) -> str:
    """Return a LaTeX file of tables; headings are comments, lines are paragraphs, and the rest is left out."""
    taken: set[str] = set()
    written = [_PREAMBLE]
    for part in parts:
        match part:
            case Heading():
                written.append(f"\n% {one_line(part.text).encode('ascii', 'replace').decode()}")
            case Line():
                written.append(rf"\noindent {escape_latex(_sentence(part.text))}\par")
            case Table(columns=columns) if columns:
                stem = slug(part.name or part.title)
                label = next(
                    one for n in range(1, len(taken) + 2) if (one := f"{stem}-{n}" if n > 1 else stem) not in taken
                )
                taken.add(label)
                for one in _floats(part, f"tab:{label}"):
                    written += [one] if len(written) % _WAITING else ["\n\\clearpage", one]
    return "\n".join([*written, "\n\\endoftables\n"])


def _floats(table: Table, label: str) -> Iterator[str]:
    """Yield the environments of a table, one for each page that its rows and notes fill; they share a number.

    One that is wider than the text is set as several below each other.
    """
    ems = {id(column): _widest(column) for column in table.columns}
    tried = ((look, table.split(partial(_fits, ems, look[1], look[3]), named=True)) for look in _SIZES)
    for (size, points, line, room), blocks in tried:  # noqa: B007 (the last that was tried)
        if len(blocks) == 1:
            break
    title = _sentence(table.title)
    for number, (start, end, notes) in enumerate(_pages(blocks, points, line)):
        lines = [
            r"\begin{table*}[htbp]",
            *[r"  \addtocounter{table}{-1}"] * (number > 0),
            rf"  \centering\{size}\setlength{{\tabcolsep}}{{{room}pt}}\setlength{{\belowcaptionskip}}{{4pt}}",
            rf"  \caption{{{escape_latex(f'{title[:-1]} (continued).' if number else title)}}}",
            *[rf"  \label{{{label}}}"] * (number == 0),
        ]
        for place, block in enumerate(blocks if end > start else ()):
            lines += [r"  \par\vspace{6pt}"] * (place > 0)
            lines += _tabular(block, _between(block, start, end), points)
        if notes:  # below, so that the caption stays short
            text = escape_latex(" ".join(notes))
            lines += [
                rf"  \par\vspace{{3pt}}\begin{{minipage}}{{\linewidth}}\raggedright\scriptsize {text}\end{{minipage}}"
            ]
        yield "\n" + "\n".join([*lines, r"\end{table*}"])


def _pages(blocks: Sequence[Table], points: float, line: float) -> list[tuple[int, int, list[str]]]:
    """Return what stands on one page each: rows from where to where, and notes, which may go on as well.

    A heading has the room of two rows and is written again above those of its rows that go on.
    """
    table = blocks[0]
    headings = dict(table.groups)
    step = line * len(blocks)
    lines = max(len(head) for block in blocks for head in map(_head, block.columns))
    room = _HEIGHT - _CAPTION - len(blocks) * (_RULES + line * lines)
    rows = [1] * table.rows
    for column in (column for block in blocks for column in block.columns if column.kind == "text"):
        rows = [max(n, math.ceil(points * _ems(text) / _SENTENCE)) for n, text in zip(rows, column.texts, strict=True)]
    starts, left = [0], room
    for row, needed in enumerate(rows):
        height = step * (needed + 2 * (row in headings))
        if left < height and row > starts[-1]:
            starts.append(row)
            left = room - 2 * step * bool(headings)
        left -= height
    pages: list[tuple[int, int, list[str]]] = [
        (*ends, []) for ends in zip(starts, [*starts[1:], table.rows], strict=True)
    ]
    for note in map(_sentence, table.notes):
        height = _NOTE_LINE * math.ceil(len(note) / _NOTE_LETTERS)
        if left < height:
            pages.append((table.rows, table.rows, []))
            left = _HEIGHT - _CAPTION
        pages[-1][2].append(note)
        left -= height
    return pages


def _between(table: Table, start: int, end: int) -> Table:
    """Return the rows of a page; what began on an earlier one is continued."""
    part = table.at(range(start, end))
    before = [heading for place, heading in table.groups if place < start]
    continued = before and not any(place == 0 for place, _ in part.groups)
    return replace(part, groups=((0, f"{before[-1]} (continued)"), *part.groups)) if continued else part


def _tabular(table: Table, page: Table, points: float) -> Iterator[str]:
    """Yield some rows of a table, under its header and with its alignment."""
    kinds = [
        (f"p{{{_SENTENCE:.0f}pt}}" if column.kind == "text" and points * _widest(column) > _SENTENCE else "l")
        if column.left
        else "r"
        for column in table.columns
    ]
    heads = [list(map(escape_latex, _head(column))) for column in table.columns]
    yield rf"  \begin{{tabular}}{{@{{}}{''.join(kinds)}@{{}}}}"
    yield r"    \toprule"
    for place in range(max(map(len, heads))):
        yield f"    {' & '.join(head[place] if place < len(head) else '' for head in heads)} \\\\"
    yield r"    \midrule"
    headings = dict(page.groups)
    for number, row in enumerate(zip(*map(_cells, page.columns), strict=True)):
        if number in headings:
            yield from [r"    \addlinespace"] if number else []
            heading = escape_latex(headings[number])
            yield rf"    \multicolumn{{{len(row)}}}{{@{{}}l}}{{\emph{{{heading}}}}} \\"
        yield f"    {' & '.join(row)} \\\\"
    yield r"    \bottomrule"
    yield r"  \end{tabular}"


def _cells(column: Column) -> Iterator[str]:
    for text in column.texts:
        if column.kind == "label":
            yield rf"\texttt{{{escape_latex(text)}}}"
        else:
            yield escape_latex(re.sub(r"(?<![\w.])-(?=\d)", "−", text))


def _head(column: Column) -> list[str]:
    return column.head(max(map(len, column.texts), default=0))


def _widest(column: Column) -> float:
    letters = 0.531 if column.kind == "label" else 0.0  # typewriter
    texts = [letters * len(text) if letters else _ems(text) for text in column.texts]
    return max([*texts, *map(_ems, _head(column))])


def _fits(ems: Mapping[int, float], points: float, room: float, columns: Sequence[Column]) -> bool:
    widths = ((points * ems[id(column)], column.kind == "text") for column in columns)
    return sum((min(wide, _SENTENCE) if text else wide) + 2 * room for wide, text in widths) <= _POINTS


@lru_cache(maxsize=10_000)
def _ems(text: str) -> float:
    """Return about how wide Computer Modern sets a text at 7 points, in sizes of the letter; a little less at 8."""
    return sum(
        0.34 if one in " .,:;[]()|'ijlftr/" else 0.9 if one in "×±≥≤−Δ●◇mw%–ABCDGHMNOQUVWX" else 0.57 for one in text
    )


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
