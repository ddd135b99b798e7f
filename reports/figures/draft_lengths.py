"""Gain and cost of longer drafts: tokens per verification, acceptance and decoding speed-up as drafts may grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.contracts import Metric
from reports.figures.figure import Figure
from reports.figures.layout import Width, legend_below, panels, say_size
from reports.figures.style import INK, LINE_COLOURS, LINE_MARKERS
from reports.figures.task_table import PlacedPoint, TaskTable, shortened, task_tables
from reports.metrics.drafts import ACCEPTANCE, TOKENS_PER_VERIFICATION
from reports.metrics.speedups import DECODE_SPEEDUP
from reports.recorded import RecordedRun
from reports.tables.result import draft_families

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_PANELS = (TOKENS_PER_VERIFICATION, ACCEPTANCE, DECODE_SPEEDUP)
_MOST = 8  # lines that can be told apart


def figures(run: RecordedRun) -> list[Figure]:
    """Return a figure per table that has an operating point at several longest drafts."""
    found = []
    for table in task_tables(run):
        families = _families(table)
        if families:
            title = f"What longer drafts bring: {table.task}"
            found.append(
                Figure(table.stem("draft-lengths"), title, _caption(table, families), _drawer(table, families))
            )
    return found


def absence(run: RecordedRun) -> str:
    """Return why a run that drafts has no such figure; empty where it has, or drafts nothing."""
    drafts = any(row.lossless for row in run.summary.rows)
    if not drafts or any(_families(table) for table in task_tables(run)):
        return ""
    return "no figure of draft lengths: all drafts had the same limit (compare with --draft-max 2,4,8,16)"


def _families(table: TaskTable) -> dict[str, list[PlacedPoint]]:
    placed = draft_families([point.row for point in table.points])
    return {name: [table.points[place] for place in places] for name, places in placed.items()}


def _caption(table: TaskTable, families: Mapping[str, object]) -> str:
    left_out = len(families) - _MOST
    return " ".join(
        [
            table.provenance,
            "Tokens are full depth's at every length. A draft may end before its limit, where a strategy lets a token "
            "go deep; decoding is the time after the first token, paired with full depth's in the same weights format.",
            *([f"{left_out} more operating points are in the table alone."] if left_out > 0 else []),
        ]
    )


def _drawer(table: TaskTable, families: Mapping[str, Sequence[PlacedPoint]]) -> Callable[[Width], Canvas]:
    def draw(width: Width) -> Canvas:
        shown = list(families.items())[:_MOST]
        canvas, found = panels(width, len(_PANELS), 2.1, across=3)
        for axes, metric in zip(found, _PANELS, strict=True):
            lengths = sorted({point.row.draft_max or 0 for _, points in shown for point in points})
            for place, (name, points) in enumerate(shown):
                apart = 2 ** (0.06 * (place - (len(shown) - 1) / 2))  # so that bars at one length can be told apart
                _line(axes, metric, place, name, points, apart)
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

    return draw


def _line(axes: Axes, metric: Metric, place: int, name: str, points: Sequence[PlacedPoint], apart: float) -> None:
    known = [(apart * (p.row.draft_max or 0), one) for p in points if (one := p.row.estimate(metric)) is not None]
    axes.plot(
        [length for length, _ in known],
        [one.value for _, one in known],
        color=LINE_COLOURS[place],
        marker=LINE_MARKERS[place],
        markersize=4,
        linewidth=1.2,
        label=shortened(name, 50),
        zorder=3,
    )
    for length, one in known:
        if one.interval is not None:
            axes.vlines(length, *one.interval, color=LINE_COLOURS[place], linewidth=0.9, alpha=0.7, zorder=2)
