"""Letters beside points, where they cover neither points nor each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.figures.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Labelled", "place_labels"]

_RADII = (8.5, 12.0, 17.0)  # points
_ANGLES = tuple(math.radians(degrees) for degrees in (45, 135, 315, 225, 90, 0, 270, 180))
_HALF = (3.6, 4.8)  # half of a letter's box, points
_POINT = 3.5  # half of a marker's, points


@dataclass(frozen=True, slots=True)
class Labelled:
    """A point and its label.

    Attributes:
        x, y: in the axes' units.
        text: a letter.
        bars: left and right end of its horizontal error bar, lower and upper end of the vertical one.
    """

    x: float
    y: float
    text: str
    bars: tuple[float, float, float, float]


def place_labels(axes: Axes, points: Sequence[Labelled]) -> None:
    """Write each label next to its point; call it last, when limits and layout are final.

    Greedy: the point with most neighbours first, each label at the place that covers least.
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
    placed: list[tuple[float, float]] = []

    def covered(x: float, y: float, radius: float) -> float:
        labels = sum(abs(x - a) < 2 * _HALF[0] and abs(y - b) < 2 * _HALF[1] for a, b in placed)
        markers = sum(abs(x - a) < _HALF[0] + _POINT and abs(y - b) < _HALF[1] + _POINT for a, b in centres)
        outside = not (low[0] < x < high[0] and low[1] < y < high[1])
        bars = 0
        for (a, b), (left, bottom, right, top) in zip(centres, ends, strict=True):
            bars += abs(y - b) < _HALF[1] and left - _HALF[0] < x < right + _HALF[0]
            bars += abs(x - a) < _HALF[0] and bottom - _HALF[1] < y < top + _HALF[1]
        others = sum(math.hypot(x - a, y - b) < radius - 0.1 for a, b in centres)  # whose label would it seem to be?
        return 100.0 * labels + 60.0 * (others > 0) + 40.0 * markers + 200.0 * outside + 5.0 * bars + radius / 4

    def crowd(index: int) -> int:
        x, y = centres[index]
        return -sum(math.hypot(x - a, y - b) < 30 for a, b in centres)

    for index in sorted(range(len(points)), key=crowd):
        x, y = centres[index]
        places = [(r * math.cos(angle), r * math.sin(angle), r) for r in _RADII for angle in _ANGLES]
        dx, dy, _ = min(places, key=lambda place: covered(x + place[0], y + place[1], place[2]))
        placed.append((x + dx, y + dy))
        label = axes.annotate(
            points[index].text,
            (points[index].x, points[index].y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=INK,
            annotation_clip=False,
            zorder=6,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
        label.set_in_layout(False)
