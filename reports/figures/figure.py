"""A figure, and how it becomes files.

Files of one input are the same bytes every time: no date, no random identifiers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.appearance.visible_text import visible
from harness.errors import StoreError
from reports.figures.layout import Width
from reports.figures.style import styled
from reports.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

FORMATS = ("svg", "pdf", "png")
_DPI = 300
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, not drawn yet.

    Attributes:
        name: stem of its files, unique in a report: lower case, digits and hyphens.
        title: what it shows, a few words.
        caption: what a reader must know to trust it: where the numbers come from, how many samples, what the
            intervals are, what is estimated or replayed. Plain text.
        draw: makes it as wide as it is told; called inside the project's style.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Width], Canvas]


def slug(text: str) -> str:
    """Return a text as part of a file's name: lower-case letters, digits and hyphens, at most 48 characters."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-") or "x"


def save_figures(figures: Iterable[Figure], folder: Path, width: Width = "text") -> list[Path]:
    """Draw figures and write ``NAME.svg``, ``NAME.pdf`` and ``NAME.png`` of each, every file replaced whole.

    Raises:
        StoreError: a file cannot be written.
    """
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}. Use another --out.") from None
    for figure in figures:
        for suffix, content in _drawn(figure, width).items():
            path = folder / f"{figure.name}.{suffix}"
            replace_file(path, content)
            paths.append(path)
    return paths


def make_visible(canvas: Canvas) -> None:
    """Escape what is hidden in every text of a figure, labels of ticks included; before it is laid out."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    def shown(write: Callable[..., str], *place: Any) -> str:
        return visible(write(*place))

    for axes in canvas.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FuncFormatter):  # of ticks with labels of their own
                formatter.func = partial(shown, formatter.func)
    for text in canvas.findobj(Text):
        text.set_text(visible(text.get_text()))


def _drawn(figure: Figure, width: Width) -> dict[str, bytes]:
    contents = {}
    with styled(figure.name):
        canvas = figure.draw(width)
        make_visible(canvas)
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")  # it is final, and each format would work it out again
        for suffix in FORMATS:
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=suffix, dpi=_DPI, metadata=_UNDATED[suffix])
            contents[suffix] = buffer.getvalue()
    return contents
