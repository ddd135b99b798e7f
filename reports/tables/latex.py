r"""Tables for LaTeX, of booktabs alone: whatever names and texts hold, on as many pages as they take.

The file compiles by itself, and ``\input`` puts its tables into a document of one column or two. ``longtable`` knows no
second column, so that pages are cut here. What pdfLaTeX may not know is written as its nearest Latin letter or as its
code point.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from harness.appearance.visible_text import one_line
from reports.figures.drawing import slug, unused
from reports.tables.table import Column, Heading, Line, Part, Table

_WIDTH = 504.0  # points, 7 inches
_SENTENCE = 170.0  # points after which a column of sentences breaks its lines
_LINE, _NOTE_LINE = 8.0, 8.0  # height of a row and of a line of notes, points
_NOTE_LETTERS = 120  # of a line
_HEIGHT = 440.0  # room for rows, or notes, on a page: of 520 points a caption and rules take the rest
_WAITING = 16  # tables after which all that wait for a page get theirs: LaTeX lets few wait
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
                label = unused(slug(part.name or part.title), taken)
                for one in _floats(part, f"tab:{label}"):
                    written += [one] if len(written) % _WAITING else ["\n\\clearpage", one]
    return "\n".join([*written, "\n\\endoftables\n"])


def _floats(table: Table, label: str) -> Iterator[str]:
    """Yield the environments of a table, one for each page that its rows and notes fill; they share a number.

    One that is wider than the text is set as several below each other.
    """
    blocks = table.split(_fits, named=True)
    headings, step = dict(table.groups), _LINE * len(blocks)
    rows = [1] * table.rows
    for column in table.columns:
        if column.kind == "text":
            rows = [max(n, math.ceil(7 * _ems(text) / _SENTENCE)) for n, text in zip(rows, column.texts, strict=True)]
    again = 2 * step * bool(headings)  # a heading has the room of two rows, and stands above those that go on as well
    room = _HEIGHT - again - sum(_LINE * max(len(_head(column)) for column in block.columns) for block in blocks)
    heights = [step * (lines + 2 * (row in headings)) for row, lines in enumerate(rows)]
    notes = [_sentence(note) for note in table.notes]
    tall = [_NOTE_LINE * math.ceil(len(note) / _NOTE_LETTERS) for note in notes]
    pages = [(page, range(0)) for page in _pages(heights, room)]
    spoken = _pages(tall, _HEIGHT) if notes else []
    if len(spoken) == 1 and sum(tall) + sum(heights[row] for row in pages[-1][0]) <= room:
        pages[-1] = pages[-1][0], spoken.pop()
    title = _sentence(table.title)
    for number, (page, said) in enumerate([*pages, *((range(0), said) for said in spoken)]):
        lines = [
            r"\begin{table*}[htbp]",
            *[r"  \addtocounter{table}{-1}"] * (number > 0),
            r"  \centering\scriptsize\setlength{\tabcolsep}{3pt}\setlength{\belowcaptionskip}{4pt}",
            rf"  \caption{{{escape_latex(f'{title[:-1]} (continued).' if number else title)}}}",
            *[rf"  \label{{{label}}}"] * (number == 0),
        ]
        for place, block in enumerate(blocks if page else ()):
            lines += [r"  \par\vspace{6pt}"] * (place > 0)
            lines += _tabular(block, page)
        if said:  # below, so that the caption stays short
            text = escape_latex(" ".join(notes[note] for note in said))
            lines += [
                rf"  \par\vspace{{3pt}}\begin{{minipage}}{{\linewidth}}\raggedright\scriptsize {text}\end{{minipage}}"
            ]
        yield "\n" + "\n".join([*lines, r"\end{table*}"])


def _pages(heights: Sequence[float], room: float) -> list[range]:
    """Return which of some things stand on one page each."""
    starts, left = [0], room
    for place, height in enumerate(heights):
        if left < height and place > starts[-1]:
            starts.append(place)
            left = room
        left -= height
    return [range(*ends) for ends in zip(starts, [*starts[1:], len(heights)], strict=True)]


def _tabular(table: Table, page: range) -> Iterator[str]:
    """Yield some rows of a table, under its header and with its alignment."""
    kinds = [
        (f"p{{{_SENTENCE:.0f}pt}}" if column.kind == "text" and _wide(column) > _SENTENCE else "l")
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
    headings = dict(table.groups)
    for row in page:
        heading = headings.get(row, "")
        before = [text for start, text in table.groups if start < row]
        if row == page.start and before and not heading:
            heading = f"{before[-1]} (continued)"
        if heading:
            yield from [r"    \addlinespace"] if row > page.start else []
            yield rf"    \multicolumn{{{len(heads)}}}{{@{{}}l}}{{\emph{{{escape_latex(heading)}}}}} \\"
        yield f"    {' & '.join(_cell(column, row) for column in table.columns)} \\\\"
    yield r"    \bottomrule"
    yield r"  \end{tabular}"


def _cell(column: Column, row: int) -> str:
    if column.kind == "label":
        return rf"\texttt{{{escape_latex(column.texts[row])}}}"
    return escape_latex(column.texts[row])


def _head(column: Column) -> list[str]:
    return column.head(max(map(len, column.texts), default=0))


def _wide(column: Column) -> float:
    """Return how wide a column's longest text is, points."""
    texts = [0.531 * len(text) if column.kind == "label" else _ems(text) for text in column.texts]  # typewriter
    return 7 * max([*texts, *map(_ems, _head(column))])


def _fits(columns: Sequence[Column]) -> bool:
    widths = [min(_wide(column), _SENTENCE) if column.kind == "text" else _wide(column) for column in columns]
    return sum(widths) + 6 * len(widths) <= _WIDTH


@lru_cache(maxsize=10_000)
def _ems(text: str) -> float:
    """Return about how wide Computer Modern sets a text at 7 points, in sizes of the letter."""
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
