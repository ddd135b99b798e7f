"""The trade-off of a strategy's threshold (the form of GREEN-CODE's Figs. 8 to 11): accuracy above, resources below.

One figure per strategy that a run has at two thresholds or more, everything else about it equal. Bars begin at zero;
time and energy are shares of full depth's on the same prompts, paired.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from harness.contracts import Metric
from harness.records.estimate import MISSING, Estimate
from reports.figures.figure import Figure, slug
from reports.figures.layout import Width, legend_below, panels, say_size
from reports.figures.style import INK
from reports.figures.task_table import PlacedPoint, TaskTable, shortened, task_tables
from reports.metrics.sections import FIGURES, in_section
from reports.metrics.speedups import ENERGY_RATIO, SPEEDUP
from reports.metrics.vocabulary import metrics_of
from reports.recorded import RecordedRun
from reports.statistics.intervals import MINIMUM_PAIRS
from reports.summary.energy import energy_origin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

OPTION = "threshold"
_MOST = 16  # thresholds that one figure has room for
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#56b4e9", "#7f5af0", "#000000")


@dataclass(frozen=True, slots=True)
class Series:
    """One measure over all thresholds.

    Attributes:
        label: for the legend.
        colour: hexadecimal.
        bars: one per threshold; ``None`` was not measured.
        estimated: hatched, since no sensor read it.
    """

    label: str
    colour: str
    bars: tuple[Estimate | None, ...]
    estimated: bool = False


def figures(run: RecordedRun) -> list[Figure]:
    """Return a figure per table and strategy with several thresholds; with random weights resources only."""
    found = []
    for table in task_tables(run):
        for name, points in _families(table).items():
            stem = table.stem(f"thresholds-{slug(name)}")
            parts = _parts(points)
            for number, part in enumerate(parts, 1):
                which = f", part {number} of {len(parts)}" if len(parts) > 1 else ""
                found.append(
                    Figure(
                        stem if number == 1 else f"{stem}-{number}",
                        f"{shortened(name)}: what the threshold trades, {table.task}{which}",
                        _caption(table, part),
                        _drawer(table, part),
                    )
                )
    return found


def absence(run: RecordedRun) -> str:
    """Return why a run has no such figure; empty where it has."""
    if any(_families(table) for table in task_tables(run)):
        return ""
    return "no figure of thresholds: no strategy was run at two thresholds or more"


def _parts(points: Sequence[PlacedPoint]) -> list[Sequence[PlacedPoint]]:
    """Cut thresholds into as few figures as have room for them, all about as full, lowest first."""
    count = -(-len(points) // _MOST)
    cuts = [round(number * len(points) / count) for number in range(count + 1)]
    return [points[start:end] for start, end in pairwise(cuts)]


def _families(table: TaskTable) -> dict[str, list[PlacedPoint]]:
    """Return the points that differ in their threshold alone, lowest first, by a name for them."""
    groups: dict[tuple[str, str, str, str, str], list[PlacedPoint]] = {}
    for point in table.points:
        row = point.row
        if not row.lossless and OPTION in row.options and isinstance(row.options[OPTION], int | float | None):
            others = json.dumps({key: value for key, value in row.options.items() if key != OPTION}, sort_keys=True)
            groups.setdefault((row.strategy, others, row.kv, row.weights_format, row.stop), []).append(point)
    several = len(table.table.formats) > 1
    found: dict[str, list[PlacedPoint]] = {}
    for (strategy, others, kv, stored, stop), points in groups.items():
        if len({point.row.options[OPTION] for point in points}) < 2:
            continue
        same = [key for key in groups if key[0] == strategy and len(groups[key]) > 1]
        settings = ":".join(f"{key}={value}" for key, value in json.loads(others).items() if value is not None)
        name = strategy if len(same) == 1 else f"{strategy}:{settings}@{kv}" + several * f"@{stored}"
        name += f"@stop={stop}" if stop else ""
        found[name] = sorted(points, key=lambda point: _threshold(point) or 0.0)
    return found


def _threshold(point: PlacedPoint) -> float | None:
    """The option's value; ``None`` is the one that a trained exit carries itself."""
    value: float | None = point.row.options[OPTION]
    return value


def _scores(table: TaskTable, points: Sequence[PlacedPoint]) -> list[Series]:
    """Return the accuracy of each point; nothing with random weights."""
    if table.random_weights:
        return []
    found = []
    for place, metric in enumerate(_drawn(points)):
        bars = tuple(table.resampling.score(point.cell, metric.name, point.row.value(metric)) for point in points)
        found.append(Series(metric.term, _COLOURS[place % len(_COLOURS)], bars))
    return found


def _scored(points: Sequence[PlacedPoint]) -> list[Metric]:
    """Return the scores that a figure has bars of."""
    metrics = metrics_of(point.row for point in points)
    return [metric for metric in in_section(metrics, FIGURES) if metric.kind == "score"]


def _drawn(points: Sequence[PlacedPoint]) -> list[Metric]:
    """Return those of them that some point has."""
    return [metric for metric in _scored(points) if any(point.row.value(metric) is not None for point in points)]


def resources(table: TaskTable, points: Sequence[PlacedPoint]) -> list[Series]:
    """Return layers skipped, and time and energy as shares of full depth's, of each point."""
    depth = table.run.manifest.model.num_layers
    executed = [table.resampling.layers(point.cell, depth) for point in points]
    skipped = tuple(None if one is None else _rest(one.estimate) for one in executed)
    time = tuple(_share(point.row.estimate(SPEEDUP)) for point in points)
    energy = tuple(_share(point.row.estimate(ENERGY_RATIO)) for point in points)
    sources = sorted({point.row.energy_source for point in points})
    estimated = not all(point.row.energy_measured for point in points)
    source = ", ".join(map(energy_origin, sources) if estimated else sources)
    series = [
        Series("layers skipped", "#8c6d31", skipped),
        Series("time, share of full depth", "#d55e00", time),
        Series(f"energy, share of full depth ({source})", "#cc79a7", energy, estimated),
    ]
    return [one for one in series if any(one.bars)]


def _rest(share: Estimate) -> Estimate:
    ends = share.interval
    return Estimate.of(1 - share.value, (1 - ends[1], 1 - ends[0]) if ends else None)


def _share(ratio: Estimate | None) -> Estimate | None:
    """Turn full depth's cost over this one's into this one's share of full depth's."""
    if ratio is None or not ratio.value:
        return None
    ci = ratio.interval
    return Estimate.of(1 / ratio.value, (1 / ci[1], 1 / ci[0]) if ci and ci[0] > 0 else None)


def _caption(table: TaskTable, points: Sequence[PlacedPoint]) -> str:
    parts = [table.provenance, "Time is that of whole requests, paired by block with full depth on the same prompts."]
    shown = resources(table, points)
    if any(one.estimated for one in shown):
        parts.append("Energy (hatched) is no sensor's: it adds nothing to the time and decides nothing.")
    elif not any(one.label.startswith("energy") for one in shown):
        parts.append("Energy was not measured and is not drawn.")
    if table.random_weights:
        parts.append("Random weights: scores are meaningless and not drawn.")
    if any(_threshold(point) is None for point in points):
        parts.append("Its own: the threshold that was chosen when the exit was trained.")
    if not table.random_weights:
        pooled = [one.label for one in _scores(table, points) if not any(bar and bar.interval for bar in one.bars)]
        if pooled and table.blocks >= MINIMUM_PAIRS:
            parts.append(f"A corpus score that is no mean of samples ({', '.join(pooled)}) has no interval.")
        drawn = _drawn(points)
        missing = [metric.term for metric in _scored(points) if metric not in drawn]
        if missing:
            parts.append(f"Not measured, so not drawn: {', '.join(missing)}.")
        parts.append("Dotted lines: full depth.")
    return " ".join(parts)


def _drawer(table: TaskTable, points: Sequence[PlacedPoint]) -> Callable[[Width], Canvas]:
    def draw(width: Width) -> Canvas:
        scores, costs = _scores(table, points), resources(table, points)
        halves = [("accuracy", scores), ("resources", costs)] if scores else [("resources", costs)]
        canvas, grid = panels(width, len(halves), 1.8, across=1, sharex=True)
        full = [table.full] if table.full is not None and scores else []
        handles: list[Any] = []
        labels: list[str] = []
        for axes, (title, series) in zip(grid, halves, strict=True):
            _bars(axes, series)
            axes.set_title(title)
            axes.set_ylabel(series[0].label if len(series) == 1 else "score" if series is scores else "share")
            drawn, names = axes.get_legend_handles_labels()
            handles, labels = handles + drawn, labels + names
        if full:
            for one, metric in zip(scores, _drawn(points), strict=True):
                value = full[0].row.value(metric)
                if value is not None:
                    grid[0].axhline(value, color=one.colour, linestyle=":", linewidth=1.0, zorder=1)
        grid[-1].axhline(1.0, color=INK, linestyle=":", linewidth=1.0, zorder=1)
        names = ["its own" if (value := _threshold(point)) is None else f"{value:.4g}" for point in points]
        grid[-1].set_xticks(range(len(points)), names)
        grid[-1].set_xlabel("threshold")
        if width == "column" and len(points) > 8:
            grid[-1].tick_params(axis="x", rotation=90)
        say_size(grid[0], table.size)
        legend_below(canvas, handles, labels)
        return canvas

    return draw


def _bars(axes: Axes, series: Sequence[Series]) -> None:
    width = 0.8 / max(1, len(series))
    for place, one in enumerate(series):
        offset = (place - (len(series) - 1) / 2) * width
        kept = [(x, bar) for x, bar in enumerate(one.bars) if bar is not None]
        look: Any = {"hatch": "////", "edgecolor": "white"} if one.estimated else {}
        xs = [x + offset for x, _ in kept]
        axes.bar(xs, [bar.value for _, bar in kept], width * 0.92, color=one.colour, label=one.label, zorder=2, **look)
        for x, bar in kept:
            if not bar.value:
                axes.annotate("0", (x + offset, 0), (0, 2), textcoords="offset points", ha="center", fontsize=7)
            if bar.interval is not None:
                axes.vlines(x + offset, *bar.interval, color=INK, linewidth=0.9, zorder=3)
        for x in (x for x, bar in enumerate(one.bars) if bar is None):
            axes.annotate(MISSING, (x + offset, 0), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(bottom=0)
