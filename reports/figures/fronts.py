"""Pareto fronts: quality against what a completion costs, with intervals on both axes.

One figure per cost (time, energy, layers), two qualities beside each other: edit similarity to the reference, and
the exact prefix of full depth's tokens, which is faithfulness and says nothing about being right. A front is
that of the measured points; whether two of them really differ is what the tables' tests say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from reports.figures.figure import Figure, make_visible
from reports.figures.front_points import COSTS, QUALITIES, Cost, Front, front_of, has_front
from reports.figures.labels import Labelled, place_labels
from reports.figures.layout import Width, legend_below, panels, say_size
from reports.figures.settings import settings
from reports.figures.style import BOUND, INK, look_of
from reports.figures.task_table import TaskTable, shortened, task_tables
from reports.metrics.depth import EXIT_LAYER
from reports.metrics.energy import ENERGY_PER_REQUEST, ENERGY_PER_TOKEN
from reports.metrics.time import LATENCY_P50, LATENCY_P99
from reports.recorded import RecordedRun
from reports.summary.energy import energy_origin
from reports.summary.pareto import choose_axes
from reports.summary.resampling import Resampled
from reports.tables.columns import time_unit

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
        for cost in COSTS:
            if has_front(table, cost):
                title = f"Quality against {cost.title}: {table.task}"
                name = table.stem(f"front-{cost.key}")
                found.append(Figure(name, title, _caption(table, cost), _drawer(table, cost)))
    return found


def absence(run: RecordedRun) -> str:
    """Return why a run has no or not all fronts; empty where it has."""
    tables = list(task_tables(run))
    if not tables:
        return "no figures: no operating point finished a sample"
    if any(table.random_weights for table in tables):
        return "no figures of quality: with random weights every score is meaningless"
    if all(len(table.points) < 2 for table in tables):
        return "no Pareto fronts: only one operating point was measured"
    if not any(has_front(table, cost) for table in tables for cost in COSTS if cost.metric.kind == "energy"):
        return "no front of energy: it was not measured in every window, or not by one source"
    return ""


def _axis(table: TaskTable, cost: Cost) -> tuple[str, float]:
    """Return the label of the cost axis, and what to multiply by."""
    if cost.metric is LATENCY_P50:
        unit, scale = time_unit(point.row.value(LATENCY_P99) for point in table.points)
        return f"median latency of a request ({unit})", scale
    if cost.metric is EXIT_LAYER:
        return "layers executed per token (% of full depth)", 100.0
    row = table.points[0].row
    label = row.energy_source if row.energy_measured else energy_origin(row.energy_source)
    largest = max((point.row.value(cost.metric) or 0.0 for point in table.points), default=0.0)
    unit, scale = ("mJ", 1e3) if largest < 1 else ("J", 1.0)
    per = "of a request" if cost.metric is ENERGY_PER_REQUEST else "per token"
    return f"energy {per}, {label} ({unit})", scale


def _caption(table: TaskTable, cost: Cost) -> str:
    axes = choose_axes(table.table.rows)
    decides = axes is not None and axes.cost is cost.metric
    parts = [f"Quality against {cost.title}.", table.provenance]
    parts.append(
        "Line: the Pareto front of the measured values (filled points), which does not consider chance. Dashed: the "
        "oracle, which knows full depth's answer and is no candidate (in older runs without exact K,V it bounds "
        "nothing). Labels are settings, where they have room; of many points, those of the front."
    )
    if decides:
        parts.append("The front of edit similarity is the one that the tables mark with ●.")
    row = table.points[0].row
    if cost.metric in (ENERGY_PER_TOKEN, ENERGY_PER_REQUEST) and not row.energy_measured:
        parts.append(
            f"Energy is {energy_origin(row.energy_source)}, not measured by a sensor: this figure adds nothing to that "
            "of latency and decides no ranking."
        )
    parts.append("Exact prefix: the share of full depth's tokens before the first that differs, prefill's left out.")
    return " ".join(parts)


def _drawer(table: TaskTable, cost: Cost) -> Callable[[Width], Canvas]:
    def draw(width: Width) -> Canvas:
        label, scale = _axis(table, cost)
        legend, names = settings([point.row for point in table.points])
        texts = {point.row.operating_point: name for point, name in zip(table.points, names, strict=True)}
        canvas, found = panels(width, len(QUALITIES), 2.5, across=2)
        labelled = []
        for axes, (quality, title) in zip(found, QUALITIES.items(), strict=True):
            labelled.append(_panel(axes, front_of(table, cost, quality), scale, texts, _MANY[width]))
            axes.set_xlabel(label)
            axes.set_ylabel(title)
            say_size(axes, table.size)
        _legend(canvas, table, legend)
        make_visible(canvas)
        canvas.draw_without_rendering()
        for axes, points in zip(found, labelled, strict=True):
            place_labels(axes, points)
        return canvas

    return draw


def _panel(axes: Axes, placed: Front, scale: float, texts: Mapping[str, str], many: int) -> list[Labelled]:
    """Draw one front; return its points with their labels, which are empty where there are too many."""
    labelled = []
    for (point, x, y), best in zip(placed.points, placed.on_front, strict=True):
        look = look_of(point.row.strategy)
        colour = BOUND if point.bound else look.colour
        axes.errorbar(
            x.value * scale,
            y.value,
            xerr=_reach(x, scale),
            yerr=_reach(y),
            fmt=look.marker,
            color=colour,
            markerfacecolor=colour if best else "white",
            markersize=8 if look.marker == "*" else 5,
            ecolor=colour + "90",
            elinewidth=0.7,
            capsize=0,
            zorder=4 if best else 3,
        )
        left, right = x.ci or (x.value, x.value)
        bars = (left * scale, right * scale, *(y.ci or (y.value, y.value)))
        text = texts[point.row.operating_point] if best or len(placed.points) <= many else ""
        labelled.append(Labelled(x.value * scale, y.value, text, bars))
    low, high = axes.get_ylim()
    room = 0.03 * (high - low)
    axes.set_ylim(low - room, high + room)
    left, right = axes.get_xlim()
    for bound in (False, True):
        reached = sorted(
            (x.value * scale, y.value)
            for (point, x, y), best in zip(placed.points, placed.on_front, strict=True)
            if (point.bound if bound else best)
        )
        if reached:
            _staircase(axes, reached, bound=bound)
    axes.set_xlim(left, right)
    return labelled


def _staircase(axes: Axes, reached: list[tuple[float, float]], *, bound: bool) -> None:
    """Draw the edge of what was reached: nothing above and to the left of it was."""
    bottom, right = axes.get_ylim()[0], axes.get_xlim()[1]
    xs = [reached[0][0], *(x for x, _ in reached), right]
    ys = [bottom, *(y for _, y in reached), reached[-1][1]]
    colour, style = (BOUND, (0, (4, 2))) if bound else (INK, "solid")
    look: Any = {"linestyle": style, "color": colour, "linewidth": 1.0, "zorder": 2}
    axes.step(xs, ys, where="post", **look)
    axes.set_ylim(bottom=bottom)


def _reach(estimate: Resampled, scale: float = 1.0) -> list[list[float]] | None:
    """Lengths of an error bar below and above; an interval of a skewed statistic may leave its value outside."""
    if estimate.ci is None:
        return None
    low, high = estimate.ci
    return [[max(0.0, estimate.value - low) * scale], [max(0.0, high - estimate.value) * scale]]


def _legend(canvas: Canvas, table: TaskTable, legend: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    drawn: dict[str, Any] = {}
    for point in table.points:
        look = look_of(point.row.strategy)
        colour = BOUND if point.bound else look.colour
        label = shortened(legend[point.row.strategy]) + (" (a bound)" if point.bound else "")
        drawn.setdefault(label, Line2D([], [], marker=look.marker, color=colour, linestyle="", markerfacecolor="white"))
    drawn["Pareto front (filled)"] = Line2D([], [], color=INK, linewidth=1.0, marker="o", markersize=5)
    legend_below(canvas, list(drawn.values()), list(drawn), handletextpad=0.4)
