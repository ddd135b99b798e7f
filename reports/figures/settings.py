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
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from harness.contracts import Metric
from harness.records.estimate import MISSING, Estimate
from harness.records.summary import SummaryRow
from reports.figures import drawing
from reports.figures.drawing import Figure, Width
from reports.figures.task_table import TaskTable, task_tables
from reports.metrics.drafts import ACCEPTANCE, TOKENS_PER_VERIFICATION
from reports.metrics.speedups import DECODE_SPEEDUP, ENERGY_RATIO, SPEEDUP
from reports.metrics.vocabulary import FIGURES, in_section, metrics_of
from reports.recorded import RecordedRun
from reports.statistics.intervals import MINIMUM_PAIRS
from reports.summary.measured import energy_origin
from reports.tables.result import dimensions, draft_families

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

OPTION = "threshold"
_MOST = 16  # thresholds that one figure has room for
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#56b4e9", "#7f5af0", "#000000")
_PANELS = (TOKENS_PER_VERIFICATION, ACCEPTANCE, DECODE_SPEEDUP)


@dataclass(frozen=True, slots=True)
class Series:
    """One measure over all thresholds."""

    label: str
    colour: str
    bars: tuple[Estimate | None, ...]  # one per threshold; ``None`` was not measured
    full: float | None = None  # full depth's value, a dotted line
    estimated: bool = False  # hatched, since no sensor read it


def thresholds(run: RecordedRun) -> list[Figure]:
    """Return a figure per table and strategy with several thresholds; with random weights resources only."""
    found = []
    for table in task_tables(run):
        for name, rows in _families(table).items():
            for end, which, part in drawing.parted(rows, _MOST):
                stem = table.stem(f"thresholds-{drawing.slug(name)}{end}")
                title = f"{drawing.shortened(name)}: what the threshold trades, {table.first.task}{which}"
                found.append(Figure(stem, title, _caption(table, part), partial(_draw_bars, table, part)))
    return found


def _families(table: TaskTable) -> dict[str, list[SummaryRow]]:
    """Return the rows that differ in their threshold alone, lowest first, by a name for them."""
    groups: dict[tuple[str, ...], list[SummaryRow]] = {}
    for row in table.rows:
        if not row.lossless and OPTION in row.options and isinstance(row.options[OPTION], int | float | None):
            others = json.dumps({key: value for key, value in row.options.items() if key != OPTION}, sort_keys=True)
            groups.setdefault((row.strategy, others, *dimensions(row)), []).append(row)
    groups = {key: rows for key, rows in groups.items() if len({row.options[OPTION] for row in rows}) > 1}
    found: dict[str, list[SummaryRow]] = {}
    for (strategy, others, kv, stored, *rest), rows in groups.items():
        name = strategy
        if sum(key[0] == strategy for key in groups) > 1:
            settings = ":".join(f"{key}={value}" for key, value in json.loads(others).items() if value is not None)
            name = f"{strategy}:{settings}@{kv}" + (f"@{stored}" if len(table.table.formats) > 1 else "")
        named = zip(("stop", "keep", "prompt", "prefetch"), rest, strict=True)
        name += "".join(f"@{what}={value}" for what, value in named if value)
        found[name] = sorted(rows, key=lambda row: row.options[OPTION] or 0.0)
    return found


def _scored(rows: Sequence[SummaryRow]) -> tuple[list[Metric], list[Metric]]:
    """Return the scores that a figure has bars of: those that some row has, and the others."""
    found: tuple[list[Metric], list[Metric]] = [], []
    for metric in in_section(metrics_of(rows), FIGURES):
        if metric.kind == "score":
            found[all(row.value(metric) is None for row in rows)].append(metric)
    return found


def scores(table: TaskTable, rows: Sequence[SummaryRow]) -> list[Series]:
    """Return the accuracy of each row; nothing with random weights."""

    def of(metric: Metric) -> tuple[Estimate | None, ...]:
        return tuple(table.resampling.score(table.cell(row), metric.name, row.value(metric)) for row in rows)

    return [
        Series(metric.term, colour, of(metric), table.full.value(metric) if table.full else None)
        for metric, colour in zip([] if table.random_weights else _scored(rows)[0], cycle(_COLOURS), strict=False)
    ]


def resources(table: TaskTable, rows: Sequence[SummaryRow]) -> list[Series]:
    """Return layers skipped, and time and energy as shares of full depth's, of each row."""

    def skipped(row: SummaryRow) -> Estimate | None:
        found = table.resampling.layers(table.cell(row), table.run.manifest.model.num_layers)
        if found is None:
            return None
        share, ends = found.value, found.interval
        return Estimate.of(1 - share, (1 - ends[1], 1 - ends[0]) if ends else None)

    def share(ratio: Estimate | None) -> Estimate | None:
        """Turn full depth's cost over this one's into this one's share of full depth's."""
        if ratio is None or not ratio.value:
            return None
        ends = ratio.interval
        return Estimate.of(1 / ratio.value, (1 / ends[1], 1 / ends[0]) if ends and ends[0] > 0 else None)

    time, energy = (tuple(share(row.estimate(metric)) for row in rows) for metric in (SPEEDUP, ENERGY_RATIO))
    sources = sorted({row.energy_source for row in rows})
    estimated = not all(row.energy_measured for row in rows)
    source = ", ".join(map(energy_origin, sources) if estimated else sources)
    series = [
        Series("layers skipped", "#8c6d31", tuple(map(skipped, rows))),
        Series("time, share of full depth", "#d55e00", time),
        Series(f"energy, share of full depth ({source})", "#cc79a7", energy, estimated=estimated),
    ]
    return [one for one in series if any(one.bars)]


def _caption(table: TaskTable, rows: Sequence[SummaryRow]) -> str:
    parts = [table.provenance, "Time is that of whole requests, paired by block with full depth on the same prompts."]
    shown = resources(table, rows)
    if any(one.estimated for one in shown):
        parts.append("Energy (hatched) is no sensor's: it adds nothing to the time and decides nothing.")
    elif not any(one.label.startswith("energy") for one in shown):
        parts.append("Energy was not measured and is not drawn.")
    if any(row.options[OPTION] is None for row in rows):
        parts.append("Its own: the threshold that was chosen when the exit was trained.")
    if table.random_weights:
        return " ".join([*parts, "Random weights: scores are meaningless and not drawn."])
    pooled = [one.label for one in scores(table, rows) if not any(bar and bar.interval for bar in one.bars)]
    if pooled and table.blocks >= MINIMUM_PAIRS:
        parts.append(f"A corpus score that is no mean of samples ({', '.join(pooled)}) has no interval.")
    if missing := [metric.term for metric in _scored(rows)[1]]:
        parts.append(f"Not measured, so not drawn: {', '.join(missing)}.")
    return " ".join([*parts, "Dotted lines: full depth."])


def _draw_bars(table: TaskTable, rows: Sequence[SummaryRow], width: Width) -> Canvas:
    accuracy, costs = scores(table, rows), resources(table, rows)
    halves = [*([("accuracy", "score", accuracy)] if accuracy else []), ("resources", "share", costs)]
    canvas, grid = drawing.panels(width, len(halves), 1.8, across=1, sharex=True)
    for axes, (title, what, series) in zip(grid, halves, strict=True):
        _bars(axes, series)
        axes.set(title=title, ylabel=series[0].label if len(series) == 1 else what)
    for one in accuracy:
        if one.full is not None:
            grid[0].axhline(one.full, color=one.colour, linestyle=":", linewidth=1.0, zorder=1)
    grid[-1].axhline(1.0, color=drawing.INK, linestyle=":", linewidth=1.0, zorder=1)
    values = (row.options[OPTION] for row in rows)
    names = ["its own" if value is None else f"{value:.4g}" for value in values]
    grid[-1].set_xticks(range(len(rows)), names, rotation=90 if width == "column" and len(rows) > 8 else 0)
    grid[-1].set_xlabel("threshold")
    drawing.say_size(grid[0], table.size)
    drawing.legend_below(canvas)
    return canvas


def _bars(axes: Axes, series: Sequence[Series]) -> None:
    wide = 0.8 / max(1, len(series))
    for offset, one in zip(drawing.offsets(len(series)), series, strict=True):
        known = [(x + offset, bar) for x, bar in enumerate(one.bars) if bar is not None]
        hatch: dict[str, Any] = {"hatch": "////"} if one.estimated else {}
        drawing.bars(
            axes, [x for x, _ in known], [bar for _, bar in known], wide, color=one.colour, label=one.label, **hatch
        )
        for x, bar in enumerate(one.bars):
            if bar is None or not bar.value:
                drawing.near(axes, MISSING if bar is None else "0", (x + offset, 0), (0, 2), ha="center", va="bottom")
    axes.set_ylim(bottom=0)


def draft_lengths(run: RecordedRun) -> list[Figure]:
    """Return a figure per table that has an operating point at several longest drafts."""
    found = []
    for table in task_tables(run):
        if lines := _lines(table):
            left_out = len(lines) - len(drawing.LOOKS)
            caption = (
                f"{table.provenance} Tokens are full depth's at every length. A draft may end before its limit, where "
                "a strategy lets a token go deep; decoding is the time after the first token, paired with full depth's "
                "in the same weights format."
                + (f" {left_out} more operating points are in the table alone." if left_out > 0 else "")
            )
            title = f"What longer drafts bring: {table.first.task}"
            found.append(Figure(table.stem("draft-lengths"), title, caption, partial(_draw_lines, table, lines)))
    return found


def _lines(table: TaskTable) -> dict[str, list[SummaryRow]]:
    return {name: [table.rows[place] for place in places] for name, places in draft_families(table.rows).items()}


def _draw_lines(table: TaskTable, lines: Mapping[str, Sequence[SummaryRow]], width: Width) -> Canvas:
    shown = dict(islice(lines.items(), len(drawing.LOOKS)))
    lengths = sorted({row.draft_max or 0 for rows in shown.values() for row in rows})
    canvas, grid = drawing.panels(width, len(_PANELS), 2.1, across=3)
    for axes, metric in zip(grid, _PANELS, strict=True):
        labels = drawing.told_apart(shown, 50)
        for place, (label, rows, look) in enumerate(zip(labels, shown.values(), drawing.LOOKS, strict=False)):
            apart = 2 ** (0.06 * (place - (len(shown) - 1) / 2))  # so that bars at one length can be told apart
            known = {apart * (row.draft_max or 0): one for row in rows if (one := row.estimate(metric))}
            drawing.curve(axes, [*known], [*known.values()], look, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths], minor=False)
        axes.set(xlabel="longest draft, tokens", ylabel=metric.term)
        if metric is ACCEPTANCE:
            axes.set_ylim(0, 1.03)
        elif metric is DECODE_SPEEDUP:
            axes.axhline(1.0, color=drawing.INK, linestyle=":", linewidth=1.0, zorder=1)
    drawing.say_size(grid[-1 if width == "text" else 0], table.size)
    drawing.legend_below(canvas)
    return canvas
