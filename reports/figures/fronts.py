"""Pareto fronts: how much of full depth's text is kept against what is gained, with intervals on both axes.

One figure per gain (time, energy, layers). Points, intervals and front are those of the tables; whether two points of a
front really differ is not tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.appearance.visible_text import one_line
from harness.contracts import Metric
from harness.records.summary import SummaryRow
from reports.figures import drawing
from reports.figures.drawing import Figure, Width
from reports.figures.task_table import TaskTable, task_tables
from reports.metrics.depth import LAYERS_SKIPPED
from reports.metrics.energy import ENERGY_PER_TOKEN
from reports.metrics.speedups import (
    ENERGY_RATIO,
    ENERGY_RATIO_OVER_FASTEST,
    ENERGY_RATIO_OVER_FIRST,
    SPEEDUP,
    SPEEDUP_OVER_FASTEST,
    SPEEDUP_OVER_FIRST,
)
from reports.recorded import RecordedRun
from reports.summary.pareto import NO_FRONT, TEXT_KEPT, choose_gain, coordinates, edge, on_front
from reports.tables.result import is_candidate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_MANY = {"column": 8, "text": 16}  # points that can all have a label; of more, only those on the front have
_RADII = (9.0, 12.0, 17.0, 24.0, 34.0)  # of a label from its point, printer's points
_LED = 13.0  # beyond this distance a line says whose label it is
_HALF, _LETTER, _POINT = 4.8, 4.3, 3.5  # half of a label's height, a letter's width, half of a marker's
_LONGEST_VALUE = 12
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gain:
    """What an operating point gains, as an axis: part of a file's name, words for a caption, the tables' metric."""

    key: str
    title: str
    metric: Metric


GAINS = (
    Gain(SPEEDUP.name, "speed-up of whole requests", SPEEDUP),
    Gain("energy", "energy ratio", ENERGY_RATIO),
    Gain("layers", "layers skipped", LAYERS_SKIPPED),
)


_ENERGY = {SPEEDUP_OVER_FASTEST: ENERGY_RATIO_OVER_FASTEST, SPEEDUP_OVER_FIRST: ENERGY_RATIO_OVER_FIRST}
"""Energy ratios over the same full depth as a speed-up."""


@dataclass(frozen=True, slots=True)
class Front:
    """The rows of one table, placed by a gain (to the right) and by the text they keep (upwards)."""

    gain: Metric
    rows: tuple[SummaryRow, ...]
    on_front: tuple[bool, ...]  # bounds are never on it
    edge: tuple[bool, ...]  # those that no other beats, told from chance or not


def front_of(table: TaskTable, gain: Gain) -> Front | None:
    """Place the rows of a table on two axes; those that lack a coordinate are left out.

    ``None`` where a front means nothing: of random weights, of fewer than two points, of ratios where most windows were
    disturbed, of energy that no one sensor measured, and of layers where stop rules cut completions short.
    """
    speedup, metric = choose_gain(table.table.rows), gain.metric
    if speedup is None or table.full is None or (table.table.disturbed and metric.paired):
        return None
    if metric is SPEEDUP:
        metric = speedup
    elif metric is ENERGY_RATIO:
        read = all(row.energy_measured and row.value(ENERGY_PER_TOKEN) is not None for row in table.rows)
        if not read or len({row.energy_source for row in table.rows}) != 1:
            return None
        metric = _ENERGY.get(speedup, metric)
    elif any(row.stop or row.prompt_exit for row in table.table.rows):
        return None
    rows = tuple(row for row in table.rows if coordinates(row, metric) is not None)
    return Front(metric, rows, tuple(on_front(rows, metric)), tuple(edge(rows, metric))) if len(rows) > 1 else None


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


def _caption(table: TaskTable, gain: Gain, placed: Front) -> str:
    if not any(placed.edge):
        front = f"{NO_FRONT.capitalize()}."
    elif placed.gain.paired:
        front = (
            "Line: nothing beyond it was measured. Filled points: the Pareto front, those on the line whose gain over "
            "full depth is told from chance (corrected test and interval), and full depth; whether two of them differ "
            "is not tested." + (" Tables mark it with ●." if gain is GAINS[0] else "")
        )
    else:
        front = "Line: the Pareto front (filled points) of the measured values, which does not consider chance."
    return (
        f"Text kept (exact prefix) against {gain.title}. {table.provenance} {front} "
        "Cyan: the oracle, which knows full depth's answer and is no candidate. Labels are settings, where they have "
        "room. Exact prefix: the share of full depth's tokens before the first that differs, prefill's left out."
    )


def _draw(table: TaskTable, placed: Front, width: Width) -> Canvas:
    gain, scale = placed.gain, 1.0
    if gain.form == "percent":
        label, scale = f"{gain.term} (%)", 100.0
    else:
        energy = f"energy ratio of whole requests, {table.first.energy_source}"
        what = "speed-up of whole requests" if gain.kind == "cost" else energy
        label = f"{what} over{' fastest' if gain.restates else ''} full depth (×)"
    canvas, axes = drawing.blank(width, 4.0)
    labels, handles = _points(axes, placed, scale, _MANY[width])
    axes.set(xlabel=label, ylabel="text kept (exact prefix of full depth's)")
    drawing.say_size(axes, table.size)
    drawing.legend_below(canvas, handles, handletextpad=0.4)
    drawing.make_visible(canvas)
    canvas.draw_without_rendering()
    place_labels(axes, labels)
    return canvas


def _points(
    axes: Axes, placed: Front, scale: float, many: int
) -> tuple[list[tuple[float, float, str]], dict[str, Any]]:
    """Draw a front; return its points with their labels, empty where there are too many, and the legend's entries."""
    from matplotlib.lines import Line2D

    labels, handles, reached = [], dict[str, Any](), []
    legend, names = names_of(placed.rows)
    entries = dict(zip(legend, drawing.told_apart(legend.values()), strict=True))
    for row, best, beyond, name in zip(placed.rows, placed.on_front, placed.edge, names, strict=True):
        across, up = row.estimate(placed.gain), row.estimate(TEXT_KEPT)
        assert across is not None
        assert up is not None
        x, y, look, bound = scale * across.value, up.value, drawing.look_of(row.strategy), not is_candidate(row)
        colour = drawing.BOUND if bound else look.colour
        left, right = across.interval or (across.value, across.value)
        bars: Any = {"color": colour, "alpha": 0.6, "linewidth": 0.7}
        axes.hlines(y, scale * left, scale * right, **bars)
        axes.vlines(x, *(up.interval or (y, y)), **bars)
        shape: Any = {"marker": look.marker, "color": colour, "linestyle": ""}
        filled, size = colour if best else "white", 9 if look.marker == "*" else 6
        axes.plot(x, y, **shape, markerfacecolor=filled, markersize=size, zorder=4 if best else 3)
        labels.append((x, y, name if best or len(placed.rows) <= many else ""))
        reached += [(x, y)] * beyond
        label = entries[row.strategy] + (" (a bound)" if bound else "")
        handles.setdefault(label, Line2D([], [], **shape, markerfacecolor="white"))
    if any(placed.on_front):
        handles["front (filled: beyond chance)"] = Line2D(
            [], [], color=drawing.INK, linewidth=1.0, marker="o", markersize=5
        )
    axes.margins(x=0.06, y=0.12)
    if placed.gain.form == "ratio":
        axes.axvline(1.0, color=drawing.QUIET, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
    if reached:  # the edge of what was reached: nothing above and to the right of it was
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        reached.sort()
        xs = [left, *(x for x, _ in reached), reached[-1][0]]
        ys = [reached[0][1], *(y for _, y in reached), bottom]
        axes.step(xs, ys, where="pre", linestyle="solid", color=drawing.INK, linewidth=1.0, zorder=2)
        axes.set(xlim=(left, right), ylim=(bottom, top))
    return labels, handles


def names_of(rows: Sequence[SummaryRow]) -> tuple[dict[str, str], list[str]]:
    """Return strategy → its text in a legend, and the setting of each row.

    Options that a strategy has one value of stand in the legend, those that it has several of at the points; where it
    has one value of each, its points say them all. For example ``rl:threshold=0.9:seed=1`` and
    ``rl:threshold=0.5:seed=1@lossless`` are *rl: threshold (seed=1)*, with *0.9* and *0.5 lossless*. A point whose
    label another one has, or that would name its decoding alone, names its strategy too, and at the worst all of it.
    """
    parsed = []  # options of ``strategy:key=value:…@suffix@…``, and its suffixes
    for row in rows:
        head, *suffixes = one_line(row.operating_point).split("@")
        parsed.append((dict(part.partition("=")[::2] for part in head.split(":")[1:]), list(map(_short, suffixes))))
    legend: dict[str, str] = {}
    shown: dict[str, list[str]] = {}
    for strategy in dict.fromkeys(row.strategy for row in rows):
        own = [options for row, (options, _) in zip(rows, parsed, strict=True) if row.strategy == strategy]
        known = {key: value for options in own for key, value in options.items()}
        differ = [key for key in known if len({options.get(key) for options in own}) > 1]
        shown[strategy] = differ or list(known)
        fixed = [f"{key}={_short(value)}" for key, value in known.items() if key not in shown[strategy]]
        named = f": {', '.join(shown[strategy])}" if shown[strategy] else ""
        legend[strategy] = f"{strategy}{named}" + (f" ({', '.join(fixed)})" if fixed else "")
    labels = [
        " ".join([*(_short(options[key]) for key in shown[row.strategy] if key in options), *suffixes])
        for row, (options, suffixes) in zip(rows, parsed, strict=True)
    ]
    shared = Counter(labels)
    for place, (row, (_, suffixes)) in enumerate(zip(rows, parsed, strict=True)):
        label = labels[place]
        if label and (shared[label] > 1 or label == " ".join(suffixes)):
            labels[place] = f"{_short(row.strategy)} {label}"
    shared = Counter(labels)
    whole = drawing.told_apart((row.operating_point for row in rows), 2 * _LONGEST_VALUE)
    return legend, [name if label and shared[label] > 1 else label for label, name in zip(labels, whole, strict=True)]


def _short(text: str) -> str:
    longest = _LONGEST_VALUE
    return text if len(text) <= 2 * longest else f"{text[: longest - 1]}…{text[-longest:]}"


def place_labels(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write labels next to their points, where they cover neither points nor each other; others are left out.

    Call it last, when limits and layout are final.
    """
    per_point = axes.figure.dpi / 72
    centres = axes.transData.transform([(x, y) for x, y, _ in points]) / per_point
    low, high = axes.get_window_extent().get_points() / per_point
    placed: list[tuple[Array, Array]] = []  # middle of each label, and half of its size

    def has_room(own: int, middle: Array, half: Array) -> bool:
        gaps = np.hypot(*np.maximum(0, abs(centres - middle) - half).T)  # from the label to every point
        inside = (middle - half > low).all() and (middle + half < high).all()
        apart = all((abs(middle - other) >= half + size).any() for other, size in placed)
        return bool(inside and apart and gaps.min() >= _POINT and gaps[own] <= gaps.min() + 0.1)

    for own, (x, y, text) in enumerate(points):
        half = np.array([_LETTER * len(text) / 2, _HALF])
        spots = (
            (radius, np.array([right * across, over * up]))
            for radius in _RADII
            for across, up in ((half[0] + 2, radius), (0, radius), (half[0] + radius - 3, 0))
            for over in (1, -1)
            for right in (1, -1)
        )
        spot = next((spot for spot in spots if has_room(own, centres[own] + spot[1], half)), None) if text else None
        if spot is not None:
            radius, by = spot
            placed.append((centres[own] + by, half))
            line = (
                {"arrowstyle": "-", "color": drawing.QUIET, "linewidth": 0.5, "shrinkB": 3} if radius > _LED else None
            )
            drawing.near(axes, text, (x, y), tuple(by), ha="center", zorder=6, arrowprops=line).set_in_layout(False)
