"""The trade-offs of one setting at several values, everything else about an operating point equal.

**Thresholds** (the form of GREEN-CODE's Figs. 8 to 11): accuracy above, resources below, a figure per strategy that a
run has at two thresholds or more. Bars begin at zero; time and energy are shares of full depth's on the same prompts,
paired. **Draft lengths**: tokens per verification, acceptance and decoding speed-up as drafts may grow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from harness.contracts import Metric
from harness.records.estimate import MISSING, Estimate
from reports.figures.drawing import (
    INK,
    LINE_COLOURS,
    LINE_MARKERS,
    Figure,
    Width,
    legend_below,
    offsets,
    panels,
    say_size,
    shortened,
    slug,
)
from reports.figures.task_table import PlacedPoint, TaskTable, task_tables
from reports.metrics.drafts import ACCEPTANCE, TOKENS_PER_VERIFICATION
from reports.metrics.speedups import DECODE_SPEEDUP, ENERGY_RATIO, SPEEDUP
from reports.metrics.vocabulary import FIGURES, in_section, metrics_of
from reports.recorded import RecordedRun
from reports.statistics.intervals import MINIMUM_PAIRS
from reports.summary.measured import energy_origin
from reports.tables.result import draft_families

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

OPTION = "threshold"
_MOST = 16  # thresholds that one figure has room for
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#56b4e9", "#7f5af0", "#000000")
_PANELS = (TOKENS_PER_VERIFICATION, ACCEPTANCE, DECODE_SPEEDUP)
_MOST_LINES = 8  # that can be told apart


@dataclass(frozen=True, slots=True)
class Series:
    """One measure over all thresholds."""

    label: str
    colour: str
    bars: tuple[Estimate | None, ...]
    full: float | None = None
    estimated: bool = False


def thresholds(run: RecordedRun) -> list[Figure]:
    """Return a figure per table and strategy with several thresholds; with random weights resources only."""
    found = []
    for table in task_tables(run):
        for name, points in _families(table).items():
            count = -(-len(points) // _MOST)  # as few figures as have room, all about as full
            cuts = [round(number * len(points) / count) for number in range(count + 1)]
            for number, (start, end) in enumerate(pairwise(cuts), 1):
                stem = table.stem(f"thresholds-{slug(name)}") + (f"-{number}" if number > 1 else "")
                which = f", part {number} of {count}" if count > 1 else ""
                title = f"{shortened(name)}: what the threshold trades, {table.first.task}{which}"
                part = points[start:end]
                found.append(Figure(stem, title, _caption(table, part), partial(_draw_bars, table, part)))
    return found


def without_thresholds(run: RecordedRun) -> str:
    """Return why a run has no such figure; empty where it has."""
    if any(_families(table) for table in task_tables(run)):
        return ""
    return "no figure of thresholds: no strategy was run at two thresholds or more"


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
        found[name] = sorted(points, key=lambda point: point.row.options[OPTION] or 0.0)
    return found


def _scored(points: Sequence[PlacedPoint]) -> tuple[list[Metric], list[Metric]]:
    """Return the scores that a figure has bars of: those that some point has, and the others."""
    metrics = in_section(metrics_of(point.row for point in points), FIGURES)
    found: tuple[list[Metric], list[Metric]] = [], []
    for metric in (metric for metric in metrics if metric.kind == "score"):
        found[all(point.row.value(metric) is None for point in points)].append(metric)
    return found


def scores(table: TaskTable, points: Sequence[PlacedPoint]) -> list[Series]:
    """Return the accuracy of each point; nothing with random weights."""
    full, (drawn, _) = table.full, _scored(points)
    return [
        Series(
            metric.term,
            _COLOURS[place % len(_COLOURS)],
            tuple(table.resampling.score(point.cell, metric.name, point.row.value(metric)) for point in points),
            None if full is None else full.row.value(metric),
        )
        for place, metric in enumerate(() if table.random_weights else drawn)
    ]


def resources(table: TaskTable, points: Sequence[PlacedPoint]) -> list[Series]:
    """Return layers skipped, and time and energy as shares of full depth's, of each point."""
    executed = [table.resampling.layers(point.cell, table.run.manifest.model.num_layers) for point in points]
    skipped = tuple(None if one is None else _rest(one.estimate) for one in executed)
    time, energy = (tuple(_share(point.row.estimate(metric)) for point in points) for metric in (SPEEDUP, ENERGY_RATIO))
    sources = sorted({point.row.energy_source for point in points})
    estimated = not all(point.row.energy_measured for point in points)
    source = ", ".join(map(energy_origin, sources) if estimated else sources)
    series = [
        Series("layers skipped", "#8c6d31", skipped),
        Series("time, share of full depth", "#d55e00", time),
        Series(f"energy, share of full depth ({source})", "#cc79a7", energy, estimated=estimated),
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
    if any(point.row.options[OPTION] is None for point in points):
        parts.append("Its own: the threshold that was chosen when the exit was trained.")
    if not table.random_weights:
        pooled = [one.label for one in scores(table, points) if not any(bar and bar.interval for bar in one.bars)]
        if pooled and table.blocks >= MINIMUM_PAIRS:
            parts.append(f"A corpus score that is no mean of samples ({', '.join(pooled)}) has no interval.")
        if missing := [metric.term for metric in _scored(points)[1]]:
            parts.append(f"Not measured, so not drawn: {', '.join(missing)}.")
        parts.append("Dotted lines: full depth.")
    return " ".join(parts)


def _draw_bars(table: TaskTable, points: Sequence[PlacedPoint], width: Width) -> Canvas:
    accuracy, costs = scores(table, points), resources(table, points)
    halves = [*([("accuracy", "score", accuracy)] if accuracy else []), ("resources", "share", costs)]
    canvas, grid = panels(width, len(halves), 1.8, across=1, sharex=True)
    handles: list[Any] = []
    labels: list[str] = []
    for axes, (title, what, series) in zip(grid, halves, strict=True):
        _bars(axes, series)
        axes.set_title(title)
        axes.set_ylabel(series[0].label if len(series) == 1 else what)
        drawn, names = axes.get_legend_handles_labels()
        handles, labels = handles + drawn, labels + names
    for one in accuracy:
        if one.full is not None:
            grid[0].axhline(one.full, color=one.colour, linestyle=":", linewidth=1.0, zorder=1)
    grid[-1].axhline(1.0, color=INK, linestyle=":", linewidth=1.0, zorder=1)
    values = (point.row.options[OPTION] for point in points)
    names = ["its own" if value is None else f"{value:.4g}" for value in values]
    grid[-1].set_xticks(range(len(points)), names)
    grid[-1].set_xlabel("threshold")
    if width == "column" and len(points) > 8:
        grid[-1].tick_params(axis="x", rotation=90)
    say_size(grid[0], table.size)
    legend_below(canvas, handles, labels)
    return canvas


def _bars(axes: Axes, series: Sequence[Series]) -> None:
    width = 0.8 / max(1, len(series))
    for offset, one in zip(offsets(len(series)), series, strict=True):
        kept = [(x + offset, bar) for x, bar in enumerate(one.bars) if bar is not None]
        look: Any = {"hatch": "////", "edgecolor": "white"} if one.estimated else {}
        xs, heights = [x for x, _ in kept], [bar.value for _, bar in kept]
        axes.bar(xs, heights, width * 0.92, color=one.colour, label=one.label, zorder=2, **look)
        for x, bar in kept:
            if bar.interval is not None:
                axes.vlines(x, *bar.interval, color=INK, linewidth=0.9, zorder=3)
        for x, any_bar in enumerate(one.bars):
            if any_bar is None or not any_bar.value:
                text = MISSING if any_bar is None else "0"
                axes.annotate(text, (x + offset, 0), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(bottom=0)


def draft_lengths(run: RecordedRun) -> list[Figure]:
    """Return a figure per table that has an operating point at several longest drafts."""
    found = []
    for table in task_tables(run):
        if lines := _lines(table):
            left_out = len(lines) - _MOST_LINES
            caption = (
                f"{table.provenance} Tokens are full depth's at every length. A draft may end before its limit, where "
                "a strategy lets a token go deep; decoding is the time after the first token, paired with full depth's "
                "in the same weights format."
                + (f" {left_out} more operating points are in the table alone." if left_out > 0 else "")
            )
            title = f"What longer drafts bring: {table.first.task}"
            found.append(Figure(table.stem("draft-lengths"), title, caption, partial(_draw_lines, table, lines)))
    return found


def without_draft_lengths(run: RecordedRun) -> str:
    """Return why a run that drafts has no such figure; empty where it has, or drafts nothing."""
    drafts = any(row.lossless for row in run.summary.rows)
    if not drafts or any(_lines(table) for table in task_tables(run)):
        return ""
    return "no figure of draft lengths: all drafts had the same limit (compare with --draft-max 2,4,8,16)"


def _lines(table: TaskTable) -> dict[str, list[PlacedPoint]]:
    placed = draft_families([point.row for point in table.points])
    return {name: [table.points[place] for place in places] for name, places in placed.items()}


def _draw_lines(table: TaskTable, lines: Mapping[str, Sequence[PlacedPoint]], width: Width) -> Canvas:
    shown = list(lines.items())[:_MOST_LINES]
    lengths = sorted({point.row.draft_max or 0 for _, points in shown for point in points})
    canvas, found = panels(width, len(_PANELS), 2.1, across=3)
    for axes, metric in zip(found, _PANELS, strict=True):
        for place, (name, points) in enumerate(shown):
            apart = 2 ** (0.06 * (place - (len(shown) - 1) / 2))  # so that bars at one length can be told apart
            known = [(apart * (p.row.draft_max or 0), one) for p in points if (one := p.row.estimate(metric))]
            colour = LINE_COLOURS[place]
            axes.plot(
                [length for length, _ in known], [one.value for _, one in known], color=colour,
                marker=LINE_MARKERS[place], markersize=4, linewidth=1.2, label=shortened(name, 50), zorder=3,
            )  # fmt: skip
            for length, one in known:
                if one.interval is not None:
                    axes.vlines(length, *one.interval, color=colour, linewidth=0.9, alpha=0.7, zorder=2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths], minor=False)
        axes.set_xlabel("longest draft, tokens")
        axes.set_ylabel(metric.term)
        if metric is ACCEPTANCE:
            axes.set_ylim(0, 1.03)
        elif metric is DECODE_SPEEDUP:
            axes.axhline(1.0, color=INK, linestyle=":", linewidth=1.0, zorder=1)
    say_size(found[-1 if width == "text" else 0], table.size)
    legend_below(canvas, *found[0].get_legend_handles_labels())
    return canvas
