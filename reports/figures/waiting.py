"""What the user of an editor waits for: the median completion of a session, by what it is spent on.

Cold and warm stand below each other, full depth and what makes it faster: a bar is a row of the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.records import SampleRecord
from harness.records.estimate import Estimate
from harness.records.summary import SummaryRow
from reports.figures import drawing
from reports.figures.drawing import Figure, Width
from reports.figures.task_table import TaskTable, task_tables
from reports.metrics.sessions import SESSION_LATENCY_P50, SESSION_LATENCY_P95
from reports.recorded import RecordedRun
from reports.tables.result import time_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

PARTS = {
    "queue": ("waiting in the queue", "#c9c9c9"),
    "prompt": ("prompt", "#0072b2"),
    "decoding": ("decoding", "#e69f00"),
}
LIMITS_S = (0.1, 0.2)
_GREY = "#5b5b5b"
_MOST = 18  # bars in one figure
_MIDDLE = 0.2  # share of the requests, those nearest to the median, whose parts a bar is split by


@dataclass(frozen=True, slots=True)
class Wait:
    """One bar: the median latency of a row's requests, and what it goes to.

    Attributes:
        median: seconds, with the interval that tables show. slow_s: the 95th percentile.
        parts: seconds by name (:data:`PARTS`), which add up to the median.
    """

    row: SummaryRow
    median: Estimate
    slow_s: float
    parts: dict[str, float]


def waits(table: TaskTable) -> list[Wait]:
    """Return a bar per row of editor sessions, in the tables' order."""
    found = []
    for row in table.rows:
        median, slow_s = row.estimate(SESSION_LATENCY_P50), row.value(SESSION_LATENCY_P95)
        made = [one for one in table.cell(row).samples.values() if one.session and one.latency_s and one.ttft_s]
        if median is not None and slow_s is not None and made:
            found.append(Wait(row, median, slow_s, _parts(made, median.value)))
    return found


def _parts(made: Sequence[SampleRecord], median: float) -> dict[str, float]:
    """Split the median as the requests that took about as long are split."""
    near = sorted(made, key=lambda one: abs((one.latency_s or 0.0) - median))[: max(1, round(_MIDDLE * len(made)))]
    queue, first, whole = (
        sum(times)
        for times in zip(*((one.queue_s or 0.0, one.ttft_s or 0.0, one.latency_s or 0.0) for one in near), strict=True)
    )
    spent = {"queue": queue, "prompt": first - queue, "decoding": whole - first}
    return {name: median * seconds / whole for name, seconds in spent.items()}


def figures(run: RecordedRun) -> list[Figure]:
    """Return a figure per table of editor sessions, several where it has many rows; none of other requests."""
    found = []
    for table in task_tables(run):
        every = waits(table)
        for end, which, bars in drawing.parted(every, _MOST) if every else ():
            title = f"What a user waits for: {table.first.task}{which}"
            found.append(Figure(table.stem(f"waiting{end}"), title, _caption(table), partial(_draw, table, bars)))
    return found


def _caption(table: TaskTable) -> str:
    return (
        f"{table.provenance.replace('Error bars', 'Dark lines')} A bar is the median wait for a whole completion that "
        "an editor asked for, split as the fifth of the requests nearest to it are; what typing overtook is not among "
        "them. Behind it the median and, in grey, the 95th percentile. Dotted: 100 and 200 ms."
    )


def _draw(table: TaskTable, bars: Sequence[Wait], width: Width) -> Canvas:
    unit, scale = time_unit(one.slow_s for one in bars)
    number = "{:.0f}" if unit == "ms" else "{:.2f}"
    canvas, axes = drawing.blank(width, 0.3 * len(bars) + 0.6)
    ends = [0.0] * len(bars)
    for name, (label, colour) in PARTS.items():
        values = [scale * one.parts[name] for one in bars]
        if any(values):
            axes.barh(range(len(bars)), values, 0.66, left=ends, color=colour, label=label, zorder=2)
            ends = [end + value for end, value in zip(ends, values, strict=True)]
    for limit in LIMITS_S:
        axes.axvline(scale * limit, color=drawing.INK, linewidth=0.8, linestyle=":", zorder=3)
    far = 0.0
    for place, one in enumerate(bars):
        low, high = (scale * end for end in one.median.interval or (one.median.value,) * 2)
        axes.plot([low, high], [place, place], color=drawing.INK, linewidth=1.4, zorder=4)
        median = drawing.near(axes, number.format(scale * one.median.value), (high, place), (5, 0), fontweight="bold")
        slow = f"p95 {number.format(scale * one.slow_s)}"
        axes.annotate(
            slow, (1, 0.5), xycoords=median, xytext=(5, 0), textcoords="offset points", va="center", fontsize=7,
            color=_GREY, annotation_clip=False,
        )  # fmt: skip
        far = max(far, high)
    names = drawing.told_apart((one.row.operating_point for one in bars), 40 if width == "text" else 24)
    axes.set_yticks(range(len(bars)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, far * (1.25 if width == "text" else 1.7))  # room for the numbers behind the longest bar
    axes.set_xlabel(f"wait for a whole completion ({unit})")
    sessions = {sample.session for one in bars for sample in table.cell(one.row).samples.values()}
    drawing.say_size(axes, f"n = {len(sessions)} sessions")
    drawing.legend_below(canvas)
    return canvas
