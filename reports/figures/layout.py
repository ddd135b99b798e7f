"""How wide figures are: a column or the text of a two-column paper, with panels and legends laid out for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Width: TypeAlias = Literal["column", "text"]
INCHES: Mapping[Width, float] = {"column": 3.5, "text": 7.0}
"""Include a figure at its own size, and the smallest letters on paper have 7 points."""
ROWS = 3
"""Rows of two panels that one figure has: in a column the six stand below each other."""
STACKED = 1.4
"""Height of one of them, inches, with which they stay on a page."""
_LETTER = 0.06  # inches, a letter of a legend on average
_LINE = 0.16  # inches, a line of one
_HANDLE = 0.45  # inches, a line's or marker's sample with the room around it


def blank(width: Width, height: float) -> Canvas:
    """Return an empty canvas so many inches high, without a window."""
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(INCHES[width], height))


def panels(
    width: Width, count: int, height: float, *, across: int, in_column: int = 1, **options: Any
) -> tuple[Canvas, list[Axes]]:
    """Return a canvas and its panels, row by row; what the last row has no panel for stays empty.

    Args:
        width: of the canvas.
        count: panels.
        height: of a row, inches.
        across: panels beside each other at most, at the width of the text.
        in_column: the same at the width of a column.
        options: of ``matplotlib.figure.Figure.subplots``.
    """
    beside = min(count, across if width == "text" else in_column)
    rows = -(-count // beside)
    canvas = blank(width, height * rows + 0.2)
    grid: list[Axes] = list(canvas.subplots(rows, beside, squeeze=False, **options).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    return canvas, grid[:count]


def legend_below(
    canvas: Canvas, handles: Sequence[Any], labels: Sequence[str], *, title: str = "", **options: Any
) -> None:
    """Write a legend under all panels in as many columns as fit, and make the canvas higher by its lines.

    A title or label for which a line has no room goes on in the next one.
    """
    if not handles:
        return
    wide, high = canvas.get_size_inches()
    columns = max(1, min(len(labels), int(wide / (_HANDLE + _LETTER * max(map(len, labels))))))
    said = fill(title, int(wide / _LETTER) - 2)
    written = [fill(label, int((wide - _HANDLE) / _LETTER)) for label in labels]
    lines = -(-sum(len(label.split("\n")) for label in written) // columns) + len(said.splitlines())
    canvas.set_size_inches(wide, high + _LINE * lines)
    canvas.legend(
        handles, written, loc="outside lower center", ncols=columns, columnspacing=1.2, title=said or None,
        title_fontsize=7, **options,
    )  # fmt: skip


def say_size(axes: Axes, size: str) -> None:
    """Write how much is behind a panel above its right end, where no point can be: ``n = 24 samples``."""
    axes.set_title(size, loc="right", fontsize=7, fontweight="normal")
