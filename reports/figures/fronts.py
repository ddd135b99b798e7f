"""Pareto fronts: how much of full depth's text is kept against what is gained, with intervals on both axes.

One figure per gain (time, energy, layers). Points, intervals and front are those of the tables; whether two points of a
front really differ is not tested.

Settings beside points, where they cover neither points nor each other.

An operating point's name in two parts: the strategy, for a legend, and its setting, which stands at the point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.appearance.visible_text import one_line
from harness.contracts import Metric
from harness.records.summary import SummaryRow
from reports.figures.figure import Figure, make_visible
from reports.figures.front_points import GAINS, Front, Gain, front_of
from reports.figures.layout import Width, blank, legend_below, say_size
from reports.figures.style import BOUND, INK, QUIET, look_of
from reports.figures.task_table import TaskTable, shortened, task_tables
from reports.recorded import RecordedRun
from reports.summary.pareto import NO_FRONT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

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


_LONGEST_VALUE = 12


def settings(rows: Sequence[SummaryRow]) -> tuple[dict[str, str], list[str]]:
    """Return strategy → its text in a legend, and the setting of each row.

    Options that a strategy has one value of stand in the legend, those that it has several of at the points; where it
    has one value of each, its points say them all. For example ``rl:threshold=0.9:seed=1`` and
    ``rl:threshold=0.5:seed=1@lossless`` are *rl: threshold (seed=1)*, with *0.9* and *0.5 lossless*.
    """
    parsed = [_parsed(row.operating_point) for row in rows]
    seen: dict[str, dict[str, set[str]]] = {}
    for row, (options, _) in zip(rows, parsed, strict=True):
        known = seen.setdefault(row.strategy, {})
        for key, value in options.items():
            known.setdefault(key, set()).add(value)
    shown = {strategy: _shown(strategy, known, rows, parsed) for strategy, known in seen.items()}
    legend = {}
    for strategy, known in seen.items():
        fixed = [f"{key}={_short(next(iter(values)))}" for key, values in known.items() if key not in shown[strategy]]
        named = f": {', '.join(shown[strategy])}" if shown[strategy] else ""
        legend[strategy] = f"{strategy}{named}" + (f" ({', '.join(fixed)})" if fixed else "")
    labels = [
        " ".join([*(_short(options[key]) for key in shown[row.strategy] if key in options), *suffixes])
        for row, (options, suffixes) in zip(rows, parsed, strict=True)
    ]
    return legend, labels


def _shown(
    strategy: str,
    known: dict[str, set[str]],
    rows: Sequence[SummaryRow],
    parsed: Sequence[tuple[dict[str, str], list[str]]],
) -> list[str]:
    """Return the options that tell the points of a strategy apart; all where none does."""
    own = [options for row, (options, _) in zip(rows, parsed, strict=True) if row.strategy == strategy]
    differ = [key for key, values in known.items() if len(values) > 1 or any(key not in options for options in own)]
    return differ or list(known)


def _parsed(name: str) -> tuple[dict[str, str], list[str]]:
    """Take ``strategy:key=value:…@suffix@…`` apart."""
    head, *suffixes = one_line(name).split("@")
    options = dict(part.partition("=")[::2] for part in head.split(":")[1:])
    return options, list(map(_short, suffixes))


def _short(text: str, longest: int = _LONGEST_VALUE) -> str:
    return text if len(text) <= 2 * longest else f"{text[: longest - 1]}…{text[-longest:]}"


_MANY: Mapping[Width, int] = {"column": 8, "text": 16}
"""Points that can all have a label; of more, only those on the front have."""


def figures(run: RecordedRun) -> list[Figure]:
    """Return up to three figures per table; none of random weights, or of a single operating point."""
    found = []
    for table in task_tables(run):
        for gain in GAINS:
            if (placed := front_of(table, gain)) is not None:
                title = f"Text kept against {gain.title}: {table.task}"
                name = table.stem(f"front-{gain.key}")
                found.append(Figure(name, title, _caption(table, gain, placed), partial(_draw, table, placed)))
    return found


def absence(run: RecordedRun) -> str:
    """Return why a run has no or not all fronts; empty where it has."""
    tables = list(task_tables(run))
    if not tables:
        return "no figures: no operating point finished a sample"
    if any(table.random_weights for table in tables):
        return "no figures of text kept: with random weights it means nothing"
    if all(len(table.points) < 2 for table in tables):
        return "no Pareto fronts: only one operating point was measured"
    if not any(front_of(table, gain) for table in tables for gain in GAINS if gain.metric.kind == "energy"):
        return "no front of energy: no one sensor measured it in every window"
    return ""


def _axis(table: TaskTable, gain: Metric) -> tuple[str, float]:
    """Return the label of the horizontal axis, and what to multiply by."""
    if gain.form == "percent":
        return f"{gain.term} (%)", 100.0
    what = "speed-up of whole requests" if gain.kind == "cost" else f"energy ratio of whole requests, {table.sensor}"
    over = " fastest" if gain.restates else ""
    return f"{what} over{over} full depth (×)", 1.0


def _caption(table: TaskTable, gain: Gain, placed: Front) -> str:
    parts = [f"Text kept (exact prefix) against {gain.title}.", table.provenance]
    if not any(placed.edge):
        parts.append(f"{NO_FRONT.capitalize()}.")
    elif placed.gain.paired:
        parts.append(
            "Line: nothing beyond it was measured. Filled points: the Pareto front, those on the line whose gain over "
            "full depth is told from chance (corrected test and interval), and full depth; whether two of them differ "
            "is not tested." + (" Tables mark it with ●." if gain is GAINS[0] else "")
        )
    else:
        parts.append("Line: the Pareto front (filled points) of the measured values, which does not consider chance.")
    parts.append(
        "Cyan: the oracle, which knows full depth's answer and is no candidate. Labels are settings, where they have "
        "room. Exact prefix: the share of full depth's tokens before the first that differs, prefill's left out."
    )
    return " ".join(parts)


def _draw(table: TaskTable, placed: Front, width: Width) -> Canvas:
    label, scale = _axis(table, placed.gain)
    legend, names = settings([point.row for point, _, _ in placed.points])
    canvas = blank(width, 4.0)
    axes = canvas.subplots()
    labelled = _points(axes, placed, scale, names, _MANY[width])
    axes.set_xlabel(label)
    axes.set_ylabel("text kept (exact prefix of full depth's)")
    say_size(axes, table.size)
    _legend(canvas, placed, legend)
    make_visible(canvas)
    canvas.draw_without_rendering()
    place_labels(axes, labelled)
    return canvas


def _points(axes: Axes, placed: Front, scale: float, names: Sequence[str], many: int) -> list[Labelled]:
    """Draw a front; return its points with their labels, which are empty where there are too many."""
    labelled = []
    for (point, (gained, y), (across, up)), best, name in zip(placed.points, placed.on_front, names, strict=True):
        look = look_of(point.row.strategy)
        colour = BOUND if point.bound else look.colour
        x, left, right = (end * scale for end in (gained, *(across or (gained, gained))))
        axes.errorbar(
            x,
            y,
            xerr=_reach(x, (left, right)),
            yerr=_reach(y, up or (y, y)),
            fmt=look.marker,
            color=colour,
            markerfacecolor=colour if best else "white",
            markersize=9 if look.marker == "*" else 6,
            ecolor=colour + "90",
            elinewidth=0.7,
            capsize=0,
            zorder=4 if best else 3,
        )
        text = name if best or len(placed.points) <= many else ""
        labelled.append(Labelled(x, y, text, (left, right, *(up or (y, y)))))
    axes.margins(x=0.06, y=0.12)
    if placed.gain.form == "ratio":
        axes.axvline(1.0, color=QUIET, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
    reached = [(x * scale, y) for (_, (x, y), _), on_edge in zip(placed.points, placed.edge, strict=True) if on_edge]
    if reached:
        _staircase(axes, sorted(reached))
    return labelled


def _staircase(axes: Axes, reached: list[tuple[float, float]]) -> None:
    """Draw the edge of what was reached: nothing above and to the right of it was."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    xs = [left, *(x for x, _ in reached), reached[-1][0]]
    ys = [reached[0][1], *(y for _, y in reached), bottom]
    axes.step(xs, ys, where="pre", linestyle="solid", color=INK, linewidth=1.0, zorder=2)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _reach(value: float, interval: tuple[float, float]) -> list[list[float]]:
    """Lengths of an error bar below and above; an interval of a skewed statistic may leave its value outside."""
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _legend(canvas: Canvas, placed: Front, legend: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    drawn: dict[str, Any] = {}
    for point, _, _ in placed.points:
        look = look_of(point.row.strategy)
        colour = BOUND if point.bound else look.colour
        label = shortened(legend[point.row.strategy]) + (" (a bound)" if point.bound else "")
        drawn.setdefault(label, Line2D([], [], marker=look.marker, color=colour, linestyle="", markerfacecolor="white"))
    if any(placed.on_front):
        drawn["front (filled: beyond chance)"] = Line2D([], [], color=INK, linewidth=1.0, marker="o", markersize=5)
    legend_below(canvas, list(drawn.values()), list(drawn), handletextpad=0.4)
