"""A Pareto plot in text: gain to the right, quality upwards, one letter per operating point.

The staircase is the edge of what was reached: everything below and to the left of it is beaten by a point
on the front. Points that fall into one character cell are moved sideways by as little as possible; the legend
has the exact numbers. Positions are good to one cell, not more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.appearance.terminal import Text
from reports.summary.pareto import TEXT_KEPT, choose_gain, coordinates, edge
from reports.tables.result import ResultTable, is_candidate

FRONT = "bold green"
BOUND = "cyan"
_LINE = "green"
_FRAME = "dim"


@dataclass(frozen=True, slots=True)
class Marker:
    """One point of the plot.

    Attributes:
        letter: the character to draw.
        gain, quality: its coordinates, in the axes' units; of both, more is better.
        on_front: drawn bold and connected. edge: connected.
        bound: not an operating point one could deploy (the oracle).
    """

    letter: str
    gain: float
    quality: float
    on_front: bool = False
    bound: bool = False
    edge: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from a range of values to ``cells`` character cells.

    Attributes:
        low, high: values at the centres of the first and the last cell; ``low < high``.
        cells: at least 2.
    """

    low: float
    high: float
    cells: int

    @classmethod
    def covering(cls, values: Sequence[float], cells: int) -> Scale:
        """Return a scale with a little room on both sides, also when all values are equal."""
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        return cls(low - room, high + room, cells)

    def cell(self, value: float) -> int:
        """Return the cell a value falls into, clipped to the range."""
        position = (value - self.low) / (self.high - self.low) * (self.cells - 1)
        return min(max(round(position), 0), self.cells - 1)

    def ticks(self, about: int) -> list[tuple[int, str]]:
        """Return ``(cell, label)`` at round values, roughly ``about`` of them."""
        raw = (self.high - self.low) / about
        magnitude = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
        exact = (places for places in range(12) if math.isclose(round(step, places), step, rel_tol=1e-6))
        decimals = next(exact, 12)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(self.cell(index * step), f"{index * step:.{decimals}f}") for index in range(first, last + 1)]


def draw_front(table: ResultTable) -> Callable[[int], Text] | None:
    """Return what draws a table's operating points on the axes of its Pareto front, so many characters wide.

    ``None`` when the table can have none (:func:`reports.summary.pareto.choose_gain`) or no row with both coordinates.
    """
    gain = choose_gain(table.rows)
    if gain is None:
        return None
    markers = [
        Marker(letter, *point, row.pareto, not is_candidate(row), on_edge)
        for letter, row, on_edge in zip(table.letters, table.rows, edge(table.rows, gain), strict=True)
        if (point := coordinates(row, gain)) is not None
    ]
    if not markers:
        return None
    gain_label = f"{gain.term} of whole requests, × (more is better)"
    return lambda width: draw(markers, gain_label, TEXT_KEPT.term, width=width)


def draw(markers: Sequence[Marker], gain_label: str, quality_label: str, *, width: int = 80, height: int = 16) -> Text:
    """Draw a plot.

    Args:
        markers: at least one.
        gain_label: of the horizontal axis, with its unit.
        quality_label: of the vertical axis.
        width: of the whole drawing, characters; at least 30.
        height: of the plotting area, rows; at least 4.

    Returns:
        ``height + 4`` lines, none longer than ``width``.
    """
    rows = Scale.covering([marker.quality for marker in markers], height)
    gutter = max(len(label) for _, label in rows.ticks(max(2, height // 3)))
    canvas = _Canvas(Scale.covering([marker.gain for marker in markers], width - gutter - 3), rows, gutter)
    canvas.staircase([marker for marker in markers if marker.on_front or marker.edge])
    canvas.letters(markers)
    return canvas.framed(gain_label, quality_label)


@dataclass(frozen=True)
class _Canvas:
    """Character cells by (column, row), row 0 at the bottom, and the frame around them."""

    columns: Scale
    rows: Scale
    gutter: int
    cells: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)  # (character, style)

    def staircase(self, front: Sequence[Marker]) -> None:
        """Connect the front's points, and run dotted from its ends to the frame."""
        steps = sorted((self.columns.cell(marker.gain), self.rows.cell(marker.quality)) for marker in front)
        if not steps:
            return
        for x in range(steps[0][0]):
            self.cells[x, steps[0][1]] = ("┈", _LINE)
        for (x, y), (next_x, next_y) in itertools.pairwise(steps):
            for between in range(next_y + 1, y):
                self.cells[x, between] = ("│", _LINE)
            for between in range(x + 1, next_x):
                self.cells[between, next_y] = ("─", _LINE)
            if next_x > x and next_y < y:
                self.cells[x, next_y] = ("╰", _LINE)
        for y in range(steps[-1][1]):
            self.cells[steps[-1][0], y] = ("┊", _LINE)

    def letters(self, markers: Sequence[Marker]) -> None:
        """Place the letters, the front's first; a taken cell sends a letter to the nearest free one of its row."""
        taken: set[tuple[int, int]] = set()
        for marker in sorted(markers, key=lambda marker: not marker.on_front):
            x, y = self.columns.cell(marker.gain), self.rows.cell(marker.quality)
            nearest = sorted(range(self.columns.cells), key=lambda column: (abs(column - x), column < x))
            spot = next(((column, y) for column in nearest if (column, y) not in taken), (x, y))
            taken.add(spot)
            self.cells[spot] = (marker.letter, FRONT if marker.on_front else BOUND if marker.bound else "")

    def framed(self, gain_label: str, quality_label: str) -> Text:
        """Return the drawing with its axes."""
        labels = dict(self.rows.ticks(max(2, self.rows.cells // 3)))
        text = Text(no_wrap=True, overflow="crop")
        text.append(f"{'':>{self.gutter}} ↑ {quality_label}\n", _FRAME)
        for y in reversed(range(self.rows.cells)):
            label = labels.get(y, "")
            text.append(f"{label:>{self.gutter}} {'┤' if label else '│'}", _FRAME)
            for x in range(self.columns.cells):
                text.append(*self.cells.get((x, y), (" ", "")))
            text.append("\n")
        axis, numbers = self._gain_axis()
        text.append(f"{'':>{self.gutter}} └{axis}\n", _FRAME)
        text.append(f"{'':>{self.gutter}}  {numbers}\n", _FRAME)
        text.append(f"{gain_label} →".rjust(self.gutter + 2 + self.columns.cells), _FRAME)
        return text

    def _gain_axis(self) -> tuple[str, str]:
        """The horizontal axis and its numbers; a number that would touch its neighbour is left out."""
        cells = self.columns.cells
        axis, numbers = ["─"] * cells, [" "] * (cells + 1)
        for x, label in self.columns.ticks(max(2, cells // 14)):
            start = min(max(x - len(label) // 2, 0), len(numbers) - len(label))
            if "".join(numbers[max(start - 1, 0) : start + len(label) + 1]).strip():
                continue
            axis[x] = "┬"
            numbers[start : start + len(label)] = label
        return "".join(axis), "".join(numbers).rstrip()
