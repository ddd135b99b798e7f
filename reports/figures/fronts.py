"""Pareto fronts: how much of full depth's text is kept against what is gained, with intervals on both axes.

One figure per gain (time, energy, layers). Points, intervals and front are those of the tables; whether two points of a
front really differ is not tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.contracts import Metric
from reports.figures.figure import Figure, make_visible
from reports.figures.front_points import GAINS, Front, Gain, front_of
from reports.figures.labels import Labelled, place_labels
from reports.figures.layout import Width, blank, legend_below, say_size
from reports.figures.settings import settings
from reports.figures.style import BOUND, INK, QUIET, look_of
from reports.figures.task_table import TaskTable, shortened, task_tables
from reports.recorded import RecordedRun
from reports.summary.pareto import NO_FRONT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["absence", "figures"]

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
