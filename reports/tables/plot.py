"""A Pareto plot in text: cost to the right, quality upwards, one letter per operating point.

The staircase is the edge of what was reached: everything below and to the right of it is beaten by a point
on the front. Points that fall into one character cell are moved sideways by as little as possible; the legend
has the exact numbers. Positions are good to one cell, not more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.appearance.terminal import Text
from reports.metrics.time import LATENCY_P99
from reports.summary.pareto import choose_axes, coordinates
from reports.tables.columns import time_unit
from reports.tables.result import ResultTable, is_candidate

__all__ = ["BOUND", "FRONT", "Marker", "Scale", "draw", "draw_front"]

FRONT = "bold green"
BOUND = "cyan"
_LINE = "green"
_FRAME = "dim"


@dataclass(frozen=True, slots=True)
class Marker:
    """One point of the plot.

    Attributes:
        letter: the character to draw.
        cost, quality: its coordinates, in the axes' units.
        on_front: drawn bold and connected.
        bound: not an operating point one could deploy (the oracle).
    """

    letter: str
    cost: float
    quality: float
    on_front: bool = False
    bound: bool = False


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


def draw_front(table: ResultTable, *, width: int = 80) -> Text | None:
    """Draw a table's operating points on the axes of its Pareto front.

    ``None`` when the table has no front (:func:`reports.summary.pareto.choose_axes`) or no row with both coordinates.
    """
    axes = choose_axes(table.rows)
    if axes is None:
        return None
    unit, scale = ("J", 1.0)
    if axes.cost.form == "seconds":
        unit, scale = time_unit(row.value(LATENCY_P99) for row in table.rows)
    markers = [
        Marker(letter, point[0] * scale, point[1], row.pareto, not is_candidate(row))
        for letter, row in zip(table.letters, table.rows, strict=True)
        if (point := coordinates(row, axes)) is not None
    ]
    if not markers:
        return None
    quality, cost = axes.names
    return draw(markers, f"{cost}, {unit} (less is better)", f"{quality} (more is better)", width=width)


def draw(markers: Sequence[Marker], cost_label: str, quality_label: str, *, width: int = 80, height: int = 16) -> Text:
    """Draw a plot.

    Args:
        markers: at least one.
        cost_label: of the horizontal axis, with its unit.
        quality_label: of the vertical axis.
        width: of the whole drawing, characters; at least 30.
        height: of the plotting area, rows; at least 4.

    Returns:
        ``height + 4`` lines, none longer than ``width``.
    """
    rows = Scale.covering([marker.quality for marker in markers], height)
    gutter = max(len(label) for _, label in rows.ticks(max(2, height // 3)))
    canvas = _Canvas(Scale.covering([marker.cost for marker in markers], width - gutter - 3), rows, gutter)
    canvas.staircase([marker for marker in markers if marker.on_front])
    canvas.letters(markers)
    return canvas.framed(cost_label, quality_label)


@dataclass(frozen=True)
class _Canvas:
    """Character cells by (column, row), row 0 at the bottom, and the frame around them."""

    columns: Scale
    rows: Scale
    gutter: int
    cells: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)  # (character, style)

    def staircase(self, front: Sequence[Marker]) -> None:
        """Connect the front's points, and run dotted from its ends to the frame."""
        steps = sorted((self.columns.cell(marker.cost), self.rows.cell(marker.quality)) for marker in front)
        if not steps:
            return
        for y in range(steps[0][1]):
            self.cells[steps[0][0], y] = ("┊", _LINE)
        for (x, y), (next_x, next_y) in itertools.pairwise(steps):
            for between in range(x + 1, next_x):
                self.cells[between, y] = ("─", _LINE)
            for between in range(y + 1, next_y):
                self.cells[next_x, between] = ("│", _LINE)
            if next_x > x and next_y > y:
                self.cells[next_x, y] = ("╯", _LINE)
        for x in range(steps[-1][0] + 1, self.columns.cells):
            self.cells[x, steps[-1][1]] = ("┈", _LINE)

    def letters(self, markers: Sequence[Marker]) -> None:
        """Place the letters, the front's first; a taken cell sends a letter to the nearest free one of its row."""
        taken: set[tuple[int, int]] = set()
        for marker in sorted(markers, key=lambda marker: not marker.on_front):
            x, y = self.columns.cell(marker.cost), self.rows.cell(marker.quality)
            nearest = sorted(range(self.columns.cells), key=lambda column: (abs(column - x), column < x))
            spot = next(((column, y) for column in nearest if (column, y) not in taken), (x, y))
            taken.add(spot)
            self.cells[spot] = (marker.letter, FRONT if marker.on_front else BOUND if marker.bound else "")

    def framed(self, cost_label: str, quality_label: str) -> Text:
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
        axis, numbers = self._cost_axis()
        text.append(f"{'':>{self.gutter}} └{axis}\n", _FRAME)
        text.append(f"{'':>{self.gutter}}  {numbers}\n", _FRAME)
        text.append(f"{cost_label} →".rjust(self.gutter + 2 + self.columns.cells), _FRAME)
        return text

    def _cost_axis(self) -> tuple[str, str]:
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
