"""Parts that figures of trainings and of scores share: smoothed lines, colours and names of exits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.appearance.depth_colours import depth_colour
from reports.figures.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SMOOTHING", "exit_colours", "label_ends", "smoothed"]

SMOOTHING = 0.05
"""Share of a log that one point of a smoothed line looks at."""


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of the :data:`SMOOTHING` share of values around each, at least 5.

    Near the beginning, where a training changes fast, fewer, and as many on either side; near the end those there are.
    """
    reach = max(2, round(len(values) * SMOOTHING) // 2)
    windows = (
        values[place - min(reach, place) : place + min(reach, place if place < len(values) / 2 else reach) + 1]
        for place in range(len(values))
    )
    return [sum(window) / len(window) for window in windows]


def exit_colours(layers: Sequence[int]) -> dict[int, str]:
    """Return a colour per exit layer by its place among the exits, so that neighbours can be told apart."""
    return {layer: depth_colour(0.1 + 0.9 * place / max(1, len(layers) - 1)) for place, layer in enumerate(layers)}


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write each line's name right of the axes at its last value, moved up or down as little as keeps names apart."""
    height = axes.bbox.height * 72 / axes.figure.dpi  # points; a little less in the end
    ordered = sorted(ends.items(), key=lambda item: item[1][0])
    axes.autoscale_view()
    heights = [float(axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1]) for _, (y, _) in ordered]
    for (label, (_, colour)), here, spot in zip(ordered, heights, _apart(heights, 10.5 / height), strict=True):
        axes.plot(
            [1, 1.025, 1.035], [here, spot, spot], color=colour, linewidth=1.4, transform=axes.transAxes, clip_on=False
        )
        axes.text(1.042, spot, label, transform=axes.transAxes, va="center", fontsize=7.5, color=INK)


def _apart(wanted: Sequence[float], least: float) -> Iterator[float]:
    """Yield ascending positions, each at least so far from the one before, around the wanted ones."""
    blocks: list[tuple[float, int]] = []  # centre, members
    for position in wanted:
        centre, members = position, 1
        while blocks and blocks[-1][0] + least * blocks[-1][1] / 2 > centre - least * members / 2:
            before, count = blocks.pop()
            centre, members = (before * count + centre * members) / (count + members), count + members
        blocks.append((centre, members))
    for centre, members in blocks:
        yield from (centre + least * (place - (members - 1) / 2) for place in range(members))
