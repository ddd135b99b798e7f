"""What holds of every figure at the width of a column and of the text."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from reports.figures.drawing import Figure, Width, make_visible, styled

INCHES: dict[Width, float] = {"column": 3.5, "text": 7.0}
PAGE = 9.0  # inches, the height of a page's text


def drawn(figure: Figure) -> Any:
    """Draw a figure at the width of the text."""
    with styled(figure.name):
        return figure.draw("text")


def check_on_paper(figure: Figure, size: str = "n = ") -> list[str]:
    """See that a figure has its width and fits a page, that its letters can be read and that none is cut off.

    Args:
        figure: drawn at both widths.
        size: how a text begins that says how much the figure is of; empty where there is nothing to count.

    Returns:
        All that is written, of both.
    """
    said = []
    for width, inches in INCHES.items():
        where = (figure.name, width)
        with styled(figure.name):
            canvas = figure.draw(width)
            make_visible(canvas)
            texts = written(canvas)
            boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
        assert canvas.get_size_inches()[0] == inches, where
        assert canvas.get_size_inches()[1] <= PAGE, where
        assert [text.get_text() for text in texts if float(text.get_fontsize()) < 7] == [], where
        wide, high = canvas.bbox.size
        cut_off = [
            text for text, box in boxes if min(box.x0, box.y0) < -0.5 or box.x1 > wide + 0.5 or box.y1 > high + 0.5
        ]
        assert cut_off == [], where
        sizes = [one for one in boxes if one[0].startswith("n = ")]
        assert any(text.startswith(size) for text, _ in sizes) if size else not sizes, where
        assert [(a, b) for a, box in sizes for b, other in boxes if other is not box and box.overlaps(other)] == [], (
            where
        )
        said += [text for text, _ in boxes]
    return said


def check_intervals(axes: Any) -> int:
    """See that each interval of a panel holds a point, or the end of a bar, that it stands at; return how many."""
    values = [point for line in axes.get_lines() for point in zip(*line.get_data(), strict=True)]
    values += [
        (bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches if isinstance(bar, Rectangle)
    ]
    lines = [segment for one in axes.collections if isinstance(one, LineCollection) for segment in one.get_segments()]
    for (x, y), (right, top) in lines:
        assert any(x - 1e-6 <= at <= right + 1e-6 and y - 1e-6 <= up <= top + 1e-6 for at, up in values), (x, y, top)
    return len(lines)


def written(canvas: Any) -> list[Text]:
    """Lay a canvas out and return the texts on it; an axis has others besides, of ticks beyond its ends."""
    found: list[Text] = []
    draw = Text.draw

    def noted(text: Text, *given: Any) -> None:
        found.append(text)
        draw(text, *given)

    with patch.object(Text, "draw", noted):
        canvas.draw_without_rendering()
    return [text for text in found if text.get_visible() and text.get_text().strip()]
