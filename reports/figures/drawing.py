"""A figure, how it looks, how wide it is, and how it becomes files.

Figures are as wide as a column or the text of a two-column paper, in colours (Okabe and Ito 2008) that colour-blind
readers can tell apart; a strategy has the same colour in every figure of every report, and what the colours have no
room for is told apart by its marker. Files of one input are the same bytes every time: no date, no random identifiers.
matplotlib is loaded when a figure is drawn and not before.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from zlib import crc32

from harness.appearance.visible_text import one_line, visible
from harness.errors import StoreError
from harness.records.estimate import Interval
from reports.files import replace_file

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

FORMATS = ("svg", "pdf", "png")
_DPI = 300
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}

INK = "#1b1b1b"
QUIET = "#8a8a8a"
BOUND = "#56b4e9"
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#7f5af0", "#8c6d31", "#56b4e9")
LINE_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
"""Of lines that stand for no strategy each, by their place."""
_PALETTE = (*LINE_COLOURS[:-1], "#5b5b5b")
_MARKERS = (*LINE_MARKERS, ">", "p")
_KNOWN = {
    "full": ("#000000", "*"),
    "oracle": (BOUND, "d"),
    "fixed": ("#8a8a8a", "s"),
    "confidence": ("#d55e00", "o"),
    "entropy": ("#e69f00", "v"),
    "margin": ("#8c6d31", "<"),
    "saturation": ("#009e73", "^"),
    "patience": ("#5b5b5b", ">"),
    "random": ("#bdbdbd", "x"),
    "classifier": ("#cc79a7", "D"),
    "lte": ("#7f5af0", "P"),
    "rl": ("#0072b2", "X"),
    "predictor": ("#e69f00", "p"),
    "consistent": ("#7f5af0", "v"),
    "sec": ("#d55e00", "X"),
    "hash": ("#009e73", "P"),
    "free": ("#0072b2", "^"),
    "shortlist": ("#d55e00", "v"),
    "schedule": ("#5b5b5b", "D"),
    "pruned": ("#5b5b5b", "s"),
    "layerskip": ("#8c6d31", "p"),
    "del": ("#cc79a7", ">"),
    "endpoint": ("#009e73", "o"),
}
_SETTINGS: Any = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "xtick.labelsize": 7,
    "ytick.color": INK,
    "ytick.labelsize": 7,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "text.parse_math": False,  # a strategy's name is never a formula
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, not drawn yet."""

    name: str
    title: str
    caption: str
    draw: Callable[[Width], Canvas]


def slug(text: str) -> str:
    """Return a text as part of a file's name: lower-case letters, digits and hyphens, at most 48 characters."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-") or "x"


def shortened(name: str, longest: int = 44) -> str:
    """Return a name for a legend, in one line; of a long one beginning and end."""
    line = one_line(name)
    if len(line) <= longest:
        return line
    half = (longest - 1) // 2
    return f"{''.join(islice(line, longest - 1 - half))}…{line[-half:]}"


@dataclass(frozen=True, slots=True)
class Look:
    """How a strategy is drawn: a colour (hexadecimal) and a matplotlib marker."""

    colour: str
    marker: str


def look_of(strategy: str) -> Look:
    """Return the look of a strategy by its registered name.

    That of one which does not ship depends on its name alone, and is none of those that do.
    """
    if strategy in _KNOWN:
        return Look(*_KNOWN[strategy])

    def numbered(number: int) -> tuple[str, str]:
        return _PALETTE[number % len(_PALETTE)], _MARKERS[number // len(_PALETTE) % len(_MARKERS)]

    number = crc32(strategy.encode())
    while (look := numbered(number)) in _KNOWN.values():
        number += len(_PALETTE)  # the next marker of that colour
    return Look(*look)


@contextmanager
def styled(salt: str) -> Iterator[None]:
    """Draw and save inside: white ground, embedded fonts, no window system, the same bytes every time."""
    import matplotlib as mpl

    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": salt}):
        yield


def blank(width: Width, height: float) -> tuple[Canvas, Axes]:
    """Return a canvas of one panel, so many inches high, without a window."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(INCHES[width], height))
    return canvas, canvas.subplots()


def panels(
    width: Width, count: int, height: float, *, across: int, in_column: int = 1, **options: Any
) -> tuple[Canvas, list[Axes]]:
    """Return a canvas and its panels, row by row; what the last row has no panel for stays empty."""
    from matplotlib.figure import Figure as Canvas

    beside = min(count, across if width == "text" else in_column)
    rows = -(-count // beside)
    canvas = Canvas(figsize=(INCHES[width], height * rows + 0.2))
    grid: list[Axes] = list(canvas.subplots(rows, beside, squeeze=False, **options).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    return canvas, grid[:count]


def offsets(count: int, room: float = 0.8) -> list[float]:
    """Return where each of so many bars beside each other stands, seen from the middle of their room."""
    return [(place - (count - 1) / 2) * room / count for place in range(count)]


def reach(values: Sequence[float], intervals: Sequence[Interval | None]) -> list[list[float]]:
    """Return the lengths of error bars, downwards and upwards, none without an interval.

    The interval of a skewed statistic, or of resamples, may miss the value itself by a hair.
    """
    ends = [ends or (value, value) for value, ends in zip(values, intervals, strict=True)]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    return [below, above]


def say_size(axes: Axes, size: str) -> None:
    """Write how much is behind a panel above its right end, where no point can be: ``n = 24 samples``."""
    axes.set_title(size, loc="right", fontsize=7, fontweight="normal")


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


def save_figures(figures: Iterable[Figure], folder: Path, width: Width = "text") -> list[Path]:
    """Draw figures and write ``NAME.svg``, ``NAME.pdf`` and ``NAME.png`` of each, every file replaced whole."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}. Use another --out.") from None
    for figure in figures:
        with styled(figure.name):
            canvas = figure.draw(width)
            make_visible(canvas)
            canvas.draw_without_rendering()
            canvas.set_layout_engine("none")  # it is final, and each format would work it out again
            for suffix in FORMATS:
                buffer = io.BytesIO()
                canvas.savefig(buffer, format=suffix, dpi=_DPI, metadata=_UNDATED[suffix])
                paths.append(folder / f"{figure.name}.{suffix}")
                replace_file(paths[-1], buffer.getvalue())
    return paths
