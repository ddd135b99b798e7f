"""A table: columns of estimates or texts with units, and notes; and what stands beside tables in a document.

Writers (:mod:`reports.tables.writers`, :mod:`reports.tables.latex`) know only these values.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from harness.appearance.visible_text import one_line
from harness.records.estimate import MISSING, Estimate, written

_MOST_DECIMALS = 9  # a value below a billionth of its unit is written as zero

Cell = str | float | Estimate | None
"""A text; a number or an estimate, written in the column's form; ``None`` for what was not determined."""

Tone = Literal["", "strong", "faint", "good", "bad", "doubtful", "front", "bound"]
"""How a cell or line looks where there are colours; never the only carrier of a fact.

``front`` is for what stands on a Pareto front, ``bound`` for an upper bound that cannot be deployed.
"""

Form = Literal["digits", "count", "fraction", "percent", "ratio", "difference"] | str
"""``digits``: three significant digits of the column's largest number; or a format specification such as ``.2f``."""

_FORMS = {
    "count": ("{:,.0f}", "{:,.0f}"),
    "fraction": ("{:.3f}", "{:.3f}"),
    "percent": ("{:.1f} %", "{:.1f}"),
    "ratio": ("{:.2f}×", "{:.2f}"),
    "difference": ("{:+.3f}", "{:+.3f}"),
}
"""How a number and how the bounds of its interval are written."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column. Its numbers share their decimals; an estimate that lacks its interval says so."""

    header: str  # writers break it into lines; a line break that stands here is kept, behind "-" it is a hyphenation
    cells: tuple[Cell, ...] = ()
    form: Form = "digits"  # "percent" multiplies by 100
    scale: float = 1.0  # what numbers are multiplied by, for the unit (1e3 for seconds shown in ms)
    unit: str = ""
    meaning: str = ""  # a phrase for the legend
    name: str = ""  # in CSV files; the header where empty
    kind: Literal["number", "text", "label"] = "number"
    """``label`` is the name of something, folded where it is long; ``text`` breaks into lines."""
    intervals: bool = True
    needs_interval: bool = False  # on narrow screens left out rather than shown without them
    priority: float = 0.0
    """On narrow screens the highest go first; 0 always stays, up to 2 comes before any other's intervals."""
    tones: tuple[Tone, ...] = ()  # one per cell, or none
    marks: tuple[str, ...] = ()  # behind a cell's number, such as "*"; one per cell, or none

    @property
    def empty(self) -> bool:
        """Whether no row has a value."""
        return all(cell is None or cell == MISSING for cell in self.cells)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The cells as they are read."""
        number, bound = self._formats()
        marks = self.marks or ("",) * len(self.cells)
        return tuple(
            self._text(cell, number, bound) + (f" {mark}" if mark else "")
            for cell, mark in zip(self.cells, marks, strict=True)
        )

    @property
    def term(self) -> str:
        """The header in one line."""
        return self.header.replace("-\n", "").replace("\n/", "/").replace("\n", " ")

    @property
    def bracketed(self) -> bool:
        """Whether intervals, or why there are none, stand behind its numbers."""
        estimates = (cell for cell in self.cells if isinstance(cell, Estimate))
        return self.intervals and any(one.interval or one.no_interval for one in estimates)

    @property
    def left(self) -> bool:
        """Whether it is aligned left: what has intervals shares its decimals, and brackets differ in length."""
        return self.kind != "number" or self.bracketed

    @property
    def under(self) -> str:
        """The line under its header: the level of its intervals and its unit."""
        level = ("[95 %]" if self.unit else "[95 % interval]") if self.bracketed else ""
        return ", ".join(filter(None, (level, self.unit)))

    def head(self, room: int) -> list[str]:
        """Return the lines of its header, no longer than ``room`` characters where its words allow that."""
        room = max(1, room, len(self.under))
        lines = [
            piece
            for line in self.header.split("\n")
            for piece in ([line] if self.kind == "label" else textwrap.wrap(line, room, break_long_words=False))
        ]
        return [one_line(line) for line in (*lines, self.under) if line]

    def at(self, places: Sequence[int]) -> Column:
        """Return some of its cells, written as they are among all of them."""

        def some(of: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(of[place] for place in places) if of else ()

        form = self.form if self.form in _FORMS else self._formats()[0][2:-1]
        return replace(self, cells=some(self.cells), tones=some(self.tones), marks=some(self.marks), form=form)

    def _formats(self) -> tuple[str, str]:
        if self.form in _FORMS:
            return _FORMS[self.form]
        if self.form != "digits":
            return (f"{{:{self.form}}}",) * 2
        numbers = [cell.value if isinstance(cell, Estimate) else cell for cell in self.cells]
        largest = max((abs(one * self.scale) for one in numbers if isinstance(one, int | float)), default=0.0)
        decimals = min(_MOST_DECIMALS, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 0
        return (f"{{:.{decimals}f}}",) * 2

    def _text(self, cell: Cell, number: str, bound: str) -> str:
        if cell is None or isinstance(cell, str):
            return cell if cell is not None else MISSING
        factor = self.scale * (100 if self.form == "percent" else 1)
        if isinstance(cell, Estimate):
            return cell.text(number, bound if self.intervals else "", factor)
        return written(number, cell * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that any writer can write."""

    title: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    tones: tuple[Tone, ...] = ()  # one per row, or none
    groups: tuple[tuple[int, str], ...] = ()  # index of a row, and the heading of the rows from there on
    wide: bool = False  # what does not fit a screen goes on in a further table, instead of being left to the files
    name: str = ""  # in file names and labels; made of the title where empty

    def __post_init__(self) -> None:
        lengths = {len(column.cells) for column in self.columns}
        if len(lengths) > 1:
            raise ValueError(f"columns of {self.title!r} have {sorted(lengths)} cells")

    @classmethod
    def of_rows(
        cls, title: str, headers: Sequence[str | Column], rows: Iterable[Sequence[Cell | Line]], **more: Any
    ) -> Table:
        """Return a table of rows, whose cells with a tone of their own are lines.

        Headers are columns without cells; of words alone the first is a label, all others are numbers.
        """
        cells = list(zip(*rows, strict=True)) or [()] * len(headers)
        columns = []
        for place, (header, of) in enumerate(zip(headers, cells, strict=True)):
            if isinstance(header, str):
                header = Column(header=header, kind="number" if place else "label")  # noqa: PLW2901
            tones = tuple(cell.tone if isinstance(cell, Line) else "" for cell in of)
            texts = tuple(cell.text if isinstance(cell, Line) else cell for cell in of)
            columns.append(replace(header, cells=texts, tones=tones if any(tones) else header.tones))
        return cls(title=title, columns=tuple(columns), **more)

    @property
    def rows(self) -> int:
        """How many rows."""
        return len(self.columns[0].cells) if self.columns else 0

    def at(self, places: Sequence[int]) -> Table:
        """Return some of its rows."""
        numbered = {place: number for number, place in enumerate(places)}
        return replace(
            self,
            columns=tuple(column.at(places) for column in self.columns),
            tones=tuple(self.tones[place] for place in places) if self.tones else (),
            groups=tuple((numbered[place], heading) for place, heading in self.groups if place in numbered),
        )

    @property
    def leading(self) -> tuple[Column, ...]:
        """The columns that say what a row is: up to its label, or the first where none is a label."""
        labels = [place for place, column in enumerate(self.columns) if column.kind == "label"]
        return self.columns[: (labels or [0])[0] + 1]

    def split(self, fits: Callable[[Sequence[Column]], bool], *, named: bool = False) -> tuple[Table, ...]:
        """Return it as the fewest tables whose columns fit side by side; later ones are titled as continued.

        Each begins with the leading columns of priority 0, or with ``named`` all of them.
        """
        if fits(self.columns):
            return (self,)
        first = [column for column in self.leading if named or column.priority == 0]
        parts = [[*first]]
        for column in self.columns[len(self.leading) :]:
            if len(parts[-1]) > len(first) and not fits([*parts[-1], column]):
                parts.append([*first])
            parts[-1].append(column)
        return tuple(
            replace(self, columns=tuple(columns), title=f"{self.title}, continued" if place else self.title)
            for place, columns in enumerate(parts)
        )


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text beside tables: a verdict, a legend; with ``bullet``, one of a list."""

    text: str
    tone: Tone = ""
    bullet: bool = False


@dataclass(frozen=True, slots=True)
class Heading:
    """Begins a part of a document; of two levels, 0 and 1."""

    text: str
    level: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and what is to say of each, a line each; ``flowing`` ones stand behind one another on a screen."""

    facts: tuple[tuple[str, str], ...]
    flowing: bool = False


Part = Table | Line | Heading | Facts
"""The parts of a document."""
