"""Pareto fronts: how much of full depth's text is kept against what is gained, with intervals on both axes.

One figure per gain (time, energy, layers). Points, intervals and front are those of the tables; whether two points of a
front really differ is not tested. The legend has the strategies, and their settings stand beside the points where they
cover neither points nor each other. The area under a front is :func:`areas`, which tables show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.appearance.visible_text import one_line
from harness.contracts import Metric
from harness.records.estimate import Estimate, Interval
from harness.records.summary import SummaryRow
from reports.figures.drawing import (
    BOUND,
    INK,
    QUIET,
    Figure,
    Width,
    blank,
    legend_below,
    look_of,
    make_visible,
    reach,
    say_size,
    shortened,
)
from reports.figures.task_table import PlacedPoint, TaskTable, task_tables
from reports.metrics.depth import LAYERS_SKIPPED
from reports.metrics.energy import ENERGY_PER_TOKEN
from reports.metrics.faithfulness import exact_prefixes
from reports.metrics.speedups import ENERGY_RATIO, ENERGY_RATIO_OVER_FASTEST, SPEEDUP, SPEEDUP_OVER_FASTEST
from reports.recorded import RecordedRun
from reports.summary.measured import PromptTimes
from reports.summary.pareto import NO_FRONT, TEXT_KEPT, choose_gain, coordinates, edge, on_front
from reports.summary.resampling import RESAMPLES, Candidate, Hypervolume, Resampled, hypervolumes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_MANY: Mapping[Width, int] = {"column": 8, "text": 16}
"""Points that can all have a label; of more, only those on the front have."""
_RADII = (9.0, 12.0, 17.0, 24.0, 34.0)  # points
_LED = 13.0  # beyond this distance a line says whose label it is
_WORST = 100.0  # a label that would cover another, or leave the axes, is left out
_HALF = 4.8  # half of a label's height, points
_LETTER = 4.3  # a letter's width
_POINT = 3.5  # half of a marker's
_LONGEST_VALUE = 12


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain of an operating point, as an axis."""

    key: str
    title: str
    metric: Metric


GAINS = (
    Gain(SPEEDUP.name, "speed-up of whole requests", SPEEDUP),
    Gain("energy", "energy ratio", ENERGY_RATIO),
    Gain("layers", "layers skipped", LAYERS_SKIPPED),
)
_OVER_FASTEST: Mapping[Metric, Metric] = {ENERGY_RATIO: ENERGY_RATIO_OVER_FASTEST}


@dataclass(frozen=True, slots=True)
class Front:
    """The points of one table, placed."""

    gain: Metric
    points: tuple[tuple[PlacedPoint, tuple[float, float], tuple[Interval | None, Interval | None]], ...]
    on_front: tuple[bool, ...]
    edge: tuple[bool, ...]


def front_of(table: TaskTable, gain: Gain) -> Front | None:
    """Place the points of a table on two axes, as its rows have them; those that lack a coordinate are left out.

    ``None`` where a front means nothing: of random weights, of weights formats without a common full depth, of fewer
    than two points, of energy that no one sensor measured, and of layers where stop rules cut completions short.
    """
    rows = table.table.rows
    metric = choose_gain(rows)
    if metric is None or table.full is None:
        return None
    if gain.metric is not SPEEDUP:
        several = metric is SPEEDUP_OVER_FASTEST
        metric = _OVER_FASTEST.get(gain.metric, gain.metric) if several else gain.metric
    if gain.metric is ENERGY_RATIO:
        finished = [point.row for point in table.points]
        read = all(row.energy_measured and row.value(ENERGY_PER_TOKEN) is not None for row in finished)
        if not read or len({row.energy_source for row in finished}) != 1:
            return None
    if gain.metric is LAYERS_SKIPPED and any(row.stop for row in rows):
        return None

    def interval(row: SummaryRow, of: Metric) -> Interval | None:
        return None if (found := row.estimate(of)) is None else found.interval

    placed = [
        (point, found, (interval(point.row, metric), interval(point.row, TEXT_KEPT)))
        for point in table.points
        if (found := coordinates(point.row, metric)) is not None
    ]
    if len(placed) < 2:
        return None
    shown = [point.row for point, _, _ in placed]
    return Front(metric, tuple(placed), tuple(on_front(shown, metric)), tuple(edge(shown, metric)))


def areas(table: TaskTable, gain: Gain) -> Hypervolume | None:
    """Return the hypervolume of a table's candidates: of text kept against time or layers as a share of full depth's.

    ``None`` where there is no such front, or full depth was not measured.
    """
    full = table.full
    if front_of(table, gain) is None or full is None:
        return None
    prompts = PromptTimes([point.cell for point in table.points])
    candidates = []
    for point in table.points:
        if not point.bound and (cost := _cost(table, point, gain, prompts)):
            kept = table.resampling.mean(point.cell, exact_prefixes(point.cell, full.cell))
            candidates += [Candidate(point.row.strategy, cost, kept)] if kept else []
    itself = Resampled(Estimate(value=1.0, low=1.0, high=1.0), np.ones(RESAMPLES))
    return hypervolumes(candidates, itself, table.blocks)


def _cost(table: TaskTable, point: PlacedPoint, gain: Gain, prompts: PromptTimes) -> Resampled | None:
    """The cost of an operating point, as a share of full depth's."""
    if gain.metric is LAYERS_SKIPPED:
        return table.resampling.layers(point.cell, table.run.manifest.model.num_layers)
    seen = table.run.point(point.row.task, point.row.operating_point)
    full = seen.fastest_full if choose_gain(table.table.rows) is SPEEDUP_OVER_FASTEST else seen.own_full
    if full is None:
        return None
    pairs = seen.cell.block_pairs(full, prompts.request_s)
    return table.resampling.share((block, pair.other, pair.baseline) for block, pair in pairs.items())


def figures(run: RecordedRun) -> list[Figure]:
    """Return up to three figures per table; none of random weights, or of a single operating point."""
    found = []
    for table in task_tables(run):
        for gain in GAINS:
            if (placed := front_of(table, gain)) is not None:
                title = f"Text kept against {gain.title}: {table.first.task}"
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
    gain = placed.gain
    if gain.form == "percent":
        label, scale = f"{gain.term} (%)", 100.0
    else:
        energy = f"energy ratio of whole requests, {table.first.energy_source}"
        over = " fastest" if gain.restates else ""
        what = "speed-up of whole requests" if gain.kind == "cost" else energy
        label, scale = f"{what} over{over} full depth (×)", 1.0
    legend, names = names_of([point.row for point, _, _ in placed.points])
    canvas, axes = blank(width, 4.0)
    labelled, handles = _points(axes, placed, scale, legend, names, _MANY[width])
    axes.set_xlabel(label)
    axes.set_ylabel("text kept (exact prefix of full depth's)")
    say_size(axes, table.size)
    legend_below(canvas, list(handles.values()), list(handles), handletextpad=0.4)
    make_visible(canvas)
    canvas.draw_without_rendering()
    place_labels(axes, labelled)
    return canvas


def _points(
    axes: Axes, placed: Front, scale: float, legend: Mapping[str, str], names: Sequence[str], many: int
) -> tuple[list[Labelled], dict[str, Any]]:
    """Draw a front; return its points with their labels, empty where there are too many, and the legend's entries."""
    from matplotlib.lines import Line2D

    labelled, handles = [], dict[str, Any]()
    for (point, (gained, y), (across, up)), best, name in zip(placed.points, placed.on_front, names, strict=True):
        look = look_of(point.row.strategy)
        colour = BOUND if point.bound else look.colour
        x, left, right = (end * scale for end in (gained, *(across or (gained, gained))))
        axes.errorbar(
            x, y, xerr=reach([x], [(left, right)]), yerr=reach([y], [up]), fmt=look.marker, color=colour,
            markerfacecolor=colour if best else "white", markersize=9 if look.marker == "*" else 6,
            ecolor=colour + "90", elinewidth=0.7, capsize=0, zorder=4 if best else 3,
        )  # fmt: skip
        text = name if best or len(placed.points) <= many else ""
        labelled.append(Labelled(x, y, text, (left, right, *(up or (y, y)))))
        label = shortened(legend[point.row.strategy]) + (" (a bound)" if point.bound else "")
        handle = Line2D([], [], marker=look.marker, color=colour, linestyle="", markerfacecolor="white")
        handles.setdefault(label, handle)
    if any(placed.on_front):
        handles["front (filled: beyond chance)"] = Line2D([], [], color=INK, linewidth=1.0, marker="o", markersize=5)
    axes.margins(x=0.06, y=0.12)
    if placed.gain.form == "ratio":
        axes.axvline(1.0, color=QUIET, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
    on_edge = (xy for (_, xy, _), flag in zip(placed.points, placed.edge, strict=True) if flag)
    reached = sorted((x * scale, y) for x, y in on_edge)
    if reached:  # the edge of what was reached: nothing above and to the right of it was
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        xs = [left, *(x for x, _ in reached), reached[-1][0]]
        ys = [reached[0][1], *(y for _, y in reached), bottom]
        axes.step(xs, ys, where="pre", linestyle="solid", color=INK, linewidth=1.0, zorder=2)
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
    return labelled, handles


def names_of(rows: Sequence[SummaryRow]) -> tuple[dict[str, str], list[str]]:
    """Return strategy → its text in a legend, and the setting of each row.

    Options that a strategy has one value of stand in the legend, those that it has several of at the points; where it
    has one value of each, its points say them all. For example ``rl:threshold=0.9:seed=1`` and
    ``rl:threshold=0.5:seed=1@lossless`` are *rl: threshold (seed=1)*, with *0.9* and *0.5 lossless*.
    """
    parsed = []  # options of ``strategy:key=value:…@suffix@…``, and its suffixes
    for row in rows:
        head, *suffixes = one_line(row.operating_point).split("@")
        parsed.append((dict(part.partition("=")[::2] for part in head.split(":")[1:]), list(map(_short, suffixes))))
    legend: dict[str, str] = {}
    shown: dict[str, list[str]] = {}
    for strategy in dict.fromkeys(row.strategy for row in rows):
        own = [options for row, (options, _) in zip(rows, parsed, strict=True) if row.strategy == strategy]
        known: dict[str, list[str]] = {}
        for options in own:
            for key, value in options.items():
                known.setdefault(key, []).append(value)
        differ = [key for key, values in known.items() if len(set(values)) > 1 or len(values) < len(own)]
        shown[strategy] = differ or list(known)
        fixed = [f"{key}={_short(values[0])}" for key, values in known.items() if key not in shown[strategy]]
        named = f": {', '.join(shown[strategy])}" if shown[strategy] else ""
        legend[strategy] = f"{strategy}{named}" + (f" ({', '.join(fixed)})" if fixed else "")
    labels = [
        " ".join([*(_short(options[key]) for key in shown[row.strategy] if key in options), *suffixes])
        for row, (options, suffixes) in zip(rows, parsed, strict=True)
    ]
    return legend, labels


def _short(text: str) -> str:
    longest = _LONGEST_VALUE
    return text if len(text) <= 2 * longest else f"{text[: longest - 1]}…{text[-longest:]}"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A point and its label."""

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

    for index in sorted((index for index, one in enumerate(points) if one.text), key=crowd):
        (x, y), half = centres[index], _LETTER * len(points[index].text) / 2
        places = [  # where the label's middle may be, seen from its point, and how far the label then is
            place
            for r in _RADII
            for place in (
                *((sign * (half + 2), up * r, r) for up in (1, -1) for sign in (1, -1)),
                *((0.0, up * r, r) for up in (1, -1)),
                *((sign * (half + r - 3), 0.0, r) for sign in (1, -1)),
            )
        ]
        cost, best = min((covered(index, x + dx, y + dy, half), place) for place, (dx, dy, _) in enumerate(places))
        if cost >= _WORST:
            continue
        dx, dy, radius = places[best]
        placed.append((x + dx, y + dy, half))
        label = axes.annotate(
            points[index].text, (points[index].x, points[index].y), xytext=(dx, dy), textcoords="offset points",
            ha="center", va="center", fontsize=7, color=INK, annotation_clip=False, zorder=6,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.5, "shrinkB": 3} if radius > _LED else None,
        )  # fmt: skip
        label.set_in_layout(False)
