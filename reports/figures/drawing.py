"""A figure, how it looks, how wide it is, and how it becomes files.

Colours (Okabe and Ito 2008) can be told apart by colour-blind readers, and a strategy has the same one in every figure.
Files of one input are the same bytes every time: no date, no random identifiers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, pairwise
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar
from zlib import crc32

from harness.appearance.visible_text import one_line, visible
from harness.errors import StoreError
from harness.records.estimate import Estimate
from reports.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.text import Annotation

T = TypeVar("T")
Width: TypeAlias = Literal["column", "text"]
INCHES: Mapping[Width, float] = {"column": 3.5, "text": 7.0}
"""Include a figure at its own size, and the smallest letters on paper have 7 points."""
ROWS = 3  # of two panels that one figure has: in a column the six stand below each other
STACKED = 1.4  # height of one of them, inches, with which they stay on a page
_LETTER, _LINE, _HANDLE = 0.06, 0.16, 0.45  # a letter, a line and a handle of a legend, inches

FORMATS = ("svg", "pdf", "png")
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}

INK = "#1b1b1b"
QUIET = "#8a8a8a"
BOUND = "#56b4e9"
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#7f5af0", "#8c6d31", "#5b5b5b")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_KNOWN = {
    "full": ("#000000", "*"), "oracle": (BOUND, "d"), "fixed": ("#8a8a8a", "s"), "confidence": ("#d55e00", "o"),
    "entropy": ("#e69f00", "v"), "margin": ("#8c6d31", "<"), "saturation": ("#009e73", "^"),
    "patience": ("#5b5b5b", ">"), "random": ("#bdbdbd", "x"), "classifier": ("#cc79a7", "D"), "lte": ("#7f5af0", "P"),
    "rl": ("#0072b2", "X"), "predictor": ("#e69f00", "p"), "consistent": ("#7f5af0", "v"), "sec": ("#d55e00", "X"),
    "hash": ("#009e73", "P"), "free": ("#0072b2", "^"), "shortlist": ("#d55e00", "v"), "schedule": ("#5b5b5b", "D"),
    "pruned": ("#5b5b5b", "s"), "layerskip": ("#8c6d31", "p"), "del": ("#cc79a7", ">"), "endpoint": ("#009e73", "o"),
    "swift": ("#0072b2", "p"), "clasp": ("#009e73", "<"),
}  # fmt: skip
"""Colour and marker of each strategy that ships."""
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

    name: str  # stem of its files, unique in a report: lower case, digits and hyphens
    title: str
    caption: str  # what a reader must know: origin, samples, what intervals are, what is estimated; plain text
    draw: Callable[[Width], Canvas]  # called inside the project's style


def slug(text: str) -> str:
    """Return a text as part of a file's name: lower-case letters, digits and hyphens, at most 48 characters."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-") or "x"


def unused(name: str, taken: set[str]) -> str:
    """Return a name, numbered where it is taken, and take it."""
    found = next(one for n in range(1, len(taken) + 2) if (one := f"{name}-{n}" if n > 1 else name) not in taken)
    taken.add(found)
    return found


def shortened(name: str, longest: int = 44) -> str:
    """Return a name for a legend, in one line; of a long one beginning and end."""
    line, half = one_line(name), (longest - 1) // 2
    return line if len(line) <= longest else f"{line[: longest - 1 - half]}…{line[-half:]}"


def told_apart(names: Iterable[str], longest: int = 44) -> list[str]:
    """Return names for one plot, shortened but no two different ones to the same text: then all are longer."""
    lines = [one_line(name) for name in names]
    drawn = ([shortened(line, room) for line in lines] for room in count(longest, 4))
    return next(labels for labels in drawn if len(set(labels)) == len(set(lines)))


def parted(items: Sequence[T], most: int) -> Iterator[tuple[str, str, Sequence[T]]]:
    """Yield what each of several figures has room for, all about as full, with the end of its name and of its title."""
    count = -(-len(items) // most)
    cuts = [round(number * len(items) / count) for number in range(count + 1)]
    for number, (start, end) in enumerate(pairwise(cuts), 1):
        several = count > 1
        yield f"-{number}" * several, f" ({number} of {count})" * several, items[start:end]


@dataclass(frozen=True, slots=True)
class Look:
    """How a strategy, or a line, is drawn: a colour (hexadecimal) and a matplotlib marker."""

    colour: str
    marker: str


LOOKS = tuple(map(Look, (*_PALETTE[:-1], BOUND), _MARKERS))
"""Of lines that stand for no strategy each, by their place."""


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


def styled(salt: str) -> AbstractContextManager[None]:
    """Draw and save inside: white ground, embedded fonts, no window system; ``salt`` decides identifiers in an SVG."""
    import matplotlib as mpl

    return mpl.rc_context({**_SETTINGS, "svg.hashsalt": salt})


def blank(width: Width, height: float) -> tuple[Canvas, Axes]:
    """Return a canvas of one panel, so many inches high, without a window."""
    canvas, (axes,) = panels(width, 1, height, across=1)
    return canvas, axes


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


def whiskers(
    axes: Axes, at: Iterable[float], estimates: Iterable[Estimate], colour: str = INK, scale: float = 1
) -> None:
    """Draw the intervals of estimates, where they have one."""
    for x, one in zip(at, estimates, strict=True):
        if one.interval is not None:
            axes.vlines(x, scale * one.interval[0], scale * one.interval[1], color=colour, linewidth=0.9, zorder=3)


def curve(axes: Axes, at: Sequence[float], estimates: Sequence[Estimate], look: Look, **more: Any) -> None:
    """Draw a line through estimates, with their intervals."""
    given = {"marker": look.marker, "markersize": 4, "linewidth": 1.2, "zorder": 4, **more}
    axes.plot(at, [one.value for one in estimates], color=look.colour, **given)
    whiskers(axes, at, estimates, look.colour)


def bars(
    axes: Axes, at: Sequence[float], estimates: Sequence[Estimate], wide: float, *, scale: float = 1, **look: Any
) -> None:
    """Draw bars of estimates, with their intervals; ``wide`` is the room that one has."""
    given = {"edgecolor": "white", "linewidth": 0.4, "zorder": 2, **look}
    axes.bar(at, [scale * one.value for one in estimates], 0.93 * wide, **given)
    whiskers(axes, at, estimates, scale=scale)
    axes.grid(visible=False, axis="x")


def near(axes: Axes, text: str, at: tuple[float, float], by: tuple[float, float], **look: Any) -> Annotation:
    """Write next to a point, so many printer's points from it, on a ground of its own."""
    from matplotlib.patheffects import withStroke

    ground = [withStroke(linewidth=2, foreground="white")]
    given: Any = {"va": "center", "fontsize": 7, "color": INK, "annotation_clip": False, "path_effects": ground, **look}
    return axes.annotate(text, at, xytext=by, textcoords="offset points", **given)


def say_size(axes: Axes, size: str) -> None:
    """Write how much is behind a panel above its right end, where no point can be: ``n = 24 samples``."""
    axes.set_title(size, loc="right", fontsize=7, fontweight="normal")


def legend_below(canvas: Canvas, entries: dict[str, Any] | None = None, *, title: str = "", **options: Any) -> None:
    """Write a legend under all panels in as many columns as fit, and make the canvas higher by its lines.

    Of the labels that stand in some panel, each once, or of the given ones (label → handle).
    """
    if entries is None:
        named = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in canvas.axes)
        entries = {}
        for handle, label in chain.from_iterable(named):
            entries.setdefault(label, handle)
    if not entries:
        return
    wide, high = canvas.get_size_inches()
    columns = max(1, min(len(entries), int(wide / (_HANDLE + _LETTER * max(map(len, entries))))))
    said = fill(title, int(wide / _LETTER) - 2)
    written = [fill(label, int((wide - _HANDLE) / _LETTER)) for label in entries]
    lines = -(-sum(len(label.split("\n")) for label in written) // columns) + len(said.splitlines())
    canvas.set_size_inches(wide, high + _LINE * lines)
    canvas.legend(
        list(entries.values()), written, loc="outside lower center", ncols=columns, columnspacing=1.2,
        title=said or None, title_fontsize=7, **options,
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
                canvas.savefig(buffer, format=suffix, dpi=300, metadata=_UNDATED[suffix])
                paths.append(folder / f"{figure.name}.{suffix}")
                replace_file(paths[-1], buffer.getvalue())
    return paths
