"""One look for all figures: colours that colour-blind readers can tell apart, and a line style besides.

A strategy has the same colour in every figure of every report. Colours are Okabe and Ito's (2008); what they have no
room for is told apart by its marker as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from zlib import crc32

INK = "#1b1b1b"
QUIET = "#8a8a8a"
FULL = "#000000"
BOUND = "#56b4e9"
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#7f5af0", "#8c6d31", "#56b4e9")
LINE_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
"""Of lines that stand for no strategy each, by their place."""
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#7f5af0", "#8c6d31", "#5b5b5b")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_KNOWN = {
    "full": (FULL, "*"),
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
    number = crc32(strategy.encode())
    while (look := _numbered(number)) in _KNOWN.values():
        number += len(_PALETTE)  # the next marker of that colour
    return Look(*look)


def _numbered(number: int) -> tuple[str, str]:
    return _PALETTE[number % len(_PALETTE)], _MARKERS[number // len(_PALETTE) % len(_MARKERS)]


@contextmanager
def styled(salt: str) -> Iterator[None]:
    """Draw and save inside: white ground, embedded fonts, no window system, the same bytes every time.

    Args:
        salt: decides the identifiers inside an SVG.
    """
    import matplotlib as mpl

    settings: Any = {
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
        "svg.hashsalt": salt,
        "text.parse_math": False,  # a strategy's name is never a formula
    }
    with mpl.rc_context(settings):
        yield
