"""Settings beside points, where they cover neither points nor each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.figures.style import INK, QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Labelled", "place_labels"]

_RADII = (9.0, 12.0, 17.0, 24.0, 34.0)  # points
_LED = 13.0  # beyond this distance a line says whose label it is
_WORST = 100.0  # a label that would cover another, or leave the axes, is left out
_HALF = 4.8  # half of a label's height, points
_LETTER = 4.3  # a letter's width
_POINT = 3.5  # half of a marker's


@dataclass(frozen=True, slots=True)
class Labelled:
    """A point and its label.

    Attributes:
        x, y: in the axes' units.
        text: one line.
        bars: left and right end of its horizontal error bar, lower and upper end of the vertical one.
    """

    x: float
    y: float
    text: str
    bars: tuple[float, float, float, float]


def place_labels(axes: Axes, points: Sequence[Labelled]) -> None:
    """Write each label next to its point; call it last, when limits and layout are final.

    Greedy: the point with most neighbours first, each label at the place that covers least; one that has no room is
    left out.
    """
    from matplotlib.patheffects import withStroke

    per_point = axes.figure.dpi / 72

    def in_points(x: float, y: float) -> tuple[float, float]:
        across, up = axes.transData.transform((x, y))
        return float(across) / per_point, float(up) / per_point

    centres = [in_points(one.x, one.y) for one in points]
    ends = [(*in_points(one.bars[0], one.bars[2]), *in_points(one.bars[1], one.bars[3])) for one in points]
    frame = axes.get_window_extent()
    low, high = (frame.x0 / per_point, frame.y0 / per_point), (frame.x1 / per_point, frame.y1 / per_point)
    placed: list[tuple[float, float, float]] = []
    written = [index for index, one in enumerate(points) if one.text]

    def gap(x: float, y: float, half: float, a: float, b: float) -> float:
        return math.hypot(max(0.0, abs(x - a) - half), max(0.0, abs(y - b) - _HALF))

    def covered(own: int, x: float, y: float, half: float) -> float:
        labels = sum(abs(x - a) < half + h and abs(y - b) < 2 * _HALF for a, b, h in placed)
        markers = sum(gap(x, y, half, a, b) < _POINT for a, b in centres)
        inside = low[0] < x - half and x + half < high[0] and low[1] < y - _HALF and y + _HALF < high[1]
        bars = 0
        for (a, b), (left, bottom, right, top) in zip(centres, ends, strict=True):
            bars += abs(y - b) < _HALF and left - half < x < right + half
            bars += abs(x - a) < half and bottom - _HALF < y < top + _HALF
        distance = gap(x, y, half, *centres[own])
        others = any(gap(x, y, half, a, b) < distance - 0.1 for a, b in centres)  # whose label would it seem to be?
        return 100.0 * labels + 30.0 * others + 60.0 * markers + 200.0 * (not inside) + 5.0 * bars + distance / 4

    def crowd(index: int) -> int:
        x, y = centres[index]
        return -sum(math.hypot(x - a, y - b) < 30 for a, b in centres)

    for index in sorted(written, key=crowd):
        x, y = centres[index]
        half = _LETTER * len(points[index].text) / 2
        rated = [(covered(index, x + dx, y + dy, half), number) for number, (dx, dy, _) in enumerate(_places(half))]
        cost, best = min(rated)
        if cost >= _WORST:
            continue
        dx, dy, radius = _places(half)[best]
        placed.append((x + dx, y + dy, half))
        label = axes.annotate(
            points[index].text,
            (points[index].x, points[index].y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            color=INK,
            annotation_clip=False,
            zorder=6,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.5, "shrinkB": 3} if radius > _LED else None,
        )
        label.set_in_layout(False)


def _places(half: float) -> list[tuple[float, float, float]]:
    """Return where a label's middle may be, seen from its point, and how far the label then is, nearest first."""
    return [
        place
        for r in _RADII
        for place in (
            *((sign * (half + 2), up * r, r) for up in (1, -1) for sign in (1, -1)),
            *((0.0, up * r, r) for up in (1, -1)),
            *((sign * (half + r - 3), 0.0, r) for sign in (1, -1)),
        )
    ]
