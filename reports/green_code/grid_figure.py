"""The paper's bars beside ours: what the agent skips, saves and keeps at each of the paper's thresholds.

One figure per model and task. Published bars are hatched and have no interval, since there is none; ours have 95 %
intervals. Colours are of the four series, which are not strategies.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

from harness.records.conditions import MIXED
from reports.figures.figure import Figure
from reports.figures.layout import Width, legend_below, panels, say_size
from reports.figures.style import INK, QUIET
from reports.green_code.numbers import Estimate, Numbers
from reports.green_code.table import QUANTITIES, GridComparison, GridPoint, GridTable
from reports.green_code.words import NO_SCORES, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["grid_figures"]

PANELS = (
    ("layers_skipped", "layers skipped"),
    ("time_saving", "time saved"),
    ("energy_saving", "energy saved"),
    ("rouge_l_kept", "ROUGE-L kept"),
    ("codebleu_kept", "CodeBLEU kept"),
    ("overhead_time_of_full", QUANTITIES["overhead_time_of_full"]),
)
PUBLISHED = ("#9ecae1", "#fdd0a2")
MEASURED = {"none": "#0072b2", "propagate": "#d55e00"}
HATCHES = ("///", "\\\\\\")


def grid_figures(comparison: GridComparison) -> list[Figure]:
    """Return a figure per model and task; none where nothing was measured."""
    return [
        Figure(
            name=f"grid-{number}-{table.language}",
            title=_title(table),
            caption=_caption(table),
            draw=partial(_draw, table),
        )
        for number, table in enumerate(comparison.tables, 1)
        if table.samples
    ]


def _title(table: GridTable) -> str:
    return f"GREEN-CODE's grid, published and measured: {table.language.title()}"


def _caption(table: GridTable) -> str:
    energy = {
        "estimate": "Energy here is an estimate from processor time. ",
        "none": "Energy was not measured here. ",
        MIXED: "Energy here is of several sources, so it is not drawn. ",
    }
    scores = f"{NO_SCORES[0].upper()}{NO_SCORES[1:]}, and none is drawn. " if table.weights == "random" else ""
    return (
        f"{'. '.join(line[0].upper() + line[1:] for line in heading(table))}. Every bar is relative to the same "
        f"system's own full depth under the same KV policy (the paper's: tuned; here: {table.weights} weights); "
        "published bars (hatched) are single runs without an interval, lines on ours are 95 % intervals. "
        f"{energy.get(table.energy_source, '')}{scores}Equal thresholds of two agents are not equal settings."
    )


def _draw(table: GridTable, width: Width) -> Canvas:
    points = [point for point in table.points if point.key not in ("base", "full", "never")]
    beside, height, letters = (3, 2.3, 24) if width == "text" else (1, 1.2, 40)
    canvas, axes = panels(width, len(PANELS), height, across=beside, sharex=True)
    for ax, (quantity, title) in zip(axes, PANELS, strict=True):
        _panel(ax, table, points, quantity)
        estimated = quantity.startswith("energy") and not table.energy_measured
        ax.set_title(fill(f"{title} (ours: {table.energy_source})" if estimated else title, letters))
    for ax in axes[::beside]:
        ax.set_ylabel("% of full depth")
    for ax in axes[-beside:]:
        ax.set_xlabel("agent's threshold")
    say_size(axes[beside // 2], f"n = {table.samples} samples")  # beside the shortest title
    said = f"{heading(table)[-1]}. n: measured here. Black lines: 95 % intervals; published numbers have none."
    legend_below(canvas, *axes[0].get_legend_handles_labels(), title=said)
    above = fill(_title(table), 44 if width == "column" else 90)
    canvas.suptitle(above, x=0.01, ha="left", fontweight="bold", fontsize=8)
    return canvas


def _panel(ax: Axes, table: GridTable, points: list[GridPoint], quantity: str) -> None:
    series = list(_series(table, points))
    width = 0.8 / len(series)
    missing = True
    for place, (label, numbers, look) in enumerate(series):
        for slot, one in enumerate(numbers):
            value: Estimate | None = getattr(one, quantity) if one else None
            if value is None:
                continue
            missing = False
            x = slot + (place - (len(series) - 1) / 2) * width
            ax.bar(x, 100 * value.value, width * 0.92, **look)
            if value.low is not None and value.high is not None:
                ax.vlines(x, 100 * value.low, 100 * value.high, color=INK, linewidth=0.9)
        ax.bar(0, 0, 0, label=label, **look)  # the legend has every series, whatever is missing
    ax.set_xticks(range(len(points)), [point.key for point in points])
    ax.axhline(0, color=QUIET, linewidth=0.8)
    ax.grid(axis="x", visible=False)
    if quantity.endswith("_kept"):
        ax.axhline(100, color=QUIET, linewidth=0.8, linestyle=":")
        ax.set_ylim(bottom=0)
    if missing:
        ax.text(0.5, 0.5, "no number", transform=ax.transAxes, ha="center", color=QUIET)


def _series(table: GridTable, points: list[GridPoint]) -> Iterator[tuple[str, list[Numbers | None], dict[str, Any]]]:
    for name, colour, hatch in zip(table.stands_for, PUBLISHED, HATCHES, strict=False):
        look = {"color": colour, "hatch": hatch, "edgecolor": "#555555", "linewidth": 0.4}
        yield f"published, {name}, no cache", [point.published.get(name) for point in points], look
    label = f"measured, {table.model}"
    yield f"{label}, no cache", [point.uncached for point in points], {"color": MEASURED["none"]}
    yield f"{label}, KV cache", [point.cached for point in points], {"color": MEASURED["propagate"]}
