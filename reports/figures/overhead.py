"""Where the time of a request goes and what deciding costs (the form of GREEN-CODE's Table IV).

Runs of ``--attribute`` have it. The bars are the fit of :mod:`reports.summary.attribution`, stacked in the order of a
request; the points beside them are the other way of measuring, probes that never exit less full depth, and share
nothing with the fit but full depth's windows.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from harness.records.cost import PARTS, Attribution
from harness.records.estimate import written
from reports.figures import drawing
from reports.figures.drawing import Figure, Width
from reports.recorded import RecordedRun
from reports.summary.measured import energy_origin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_PARTS = {
    "prefill": ("prefill", "#c9c9c9"),
    "layers": ("layers", "#0072b2"),
    "exit_checks": ("exit checks", "#d55e00"),
    "check_heads": ("heads of checks and drafts", "#e69f00"),
    "output_head": ("LM head of the output", "#56b4e9"),
    "kv_fill": ("exits, KV fill", "#009e73"),
    "rest": ("rest (unexplained)", "#5b5b5b"),
}


def figures(run: RecordedRun) -> list[Figure]:
    """Return one figure per task and quantity that was attributed."""
    found = []
    for one in run.summary.attributions:
        name = f"{drawing.slug(run.name)}-{drawing.slug(one.where)}-overhead-{one.quantity}"
        title = f"Where the {one.quantity} of a request goes: {one.where}"
        found.append(Figure(name, title, _caption(run, one), partial(_draw, run, one)))
    return found


def _caption(run: RecordedRun, one: Attribution) -> str:
    model = run.manifest.model
    numbers = (model.stored(one.weights_format) if one.weights_format else model).numbers
    said = f"Energy is {energy_origin(one.source)}, not measured: it adds nothing to the time and decides nothing."
    return (
        f"Run {run.name}: {one.task}, {model.name}, {model.weights} weights, {numbers}; {run.summary.machine}. Left: a "
        f"request taken apart by least squares over {one.blocks} blocks of samples; the fit leaves "
        f"{100 * one.residual:.1f} % of a window unexplained (median). Right: the overhead of deciding, a probe that "
        "never exits less full depth; 95 % intervals, bootstrap over blocks. A strategy without a point was not probed."
        + ("" if one.measured else f" {said}")
        + (f" This run is not complete: {run.state}." if run.state else "")
    )


def _draw(run: RecordedRun, one: Attribution, width: Width) -> Canvas:
    largest, unit = max(row.total for row in one.rows), "s" if one.quantity == "time" else "J"
    scale, unit = (1.0, unit) if largest >= (10 if unit == "s" else 1) else (1e3, f"m{unit}")
    label = one.quantity if one.measured else f"estimated {one.quantity}"
    ratios: dict[str, Any] = {"width_ratios": (3, 1.6)} if width == "text" else {}
    height = (0.34 if width == "text" else 0.24) * len(one.rows) + 1.0
    canvas, (bars, points) = drawing.panels(width, 2, height, across=2, sharey=True, **ratios)
    _stack(bars, one, scale)
    names = drawing.told_apart((row.operating_point for row in one.rows), 34 if width == "text" else 24)
    bars.set_yticks(range(len(one.rows)), names)
    bars.invert_yaxis()
    bars.set(xlabel=f"{label} of a request ({unit})", title="by the fit")
    drawing.say_size(bars, f"n = {one.blocks} blocks")
    strategies = {point.name: point.strategy for point in run.manifest.operating_points}
    points.axvline(0, color=drawing.INK, linewidth=0.8, zorder=1)
    for place, row in enumerate(one.rows):
        if (share := row.overhead_of_full) is not None:
            look = drawing.look_of(strategies.get(row.operating_point, row.operating_point))
            low, high = share.interval or (share.value, share.value)
            points.plot([100 * low, 100 * high], [place, place], color=look.colour)
            points.plot(100 * share.value, place, look.marker, color=look.colour, markersize=6)
            text = written("{:.1f}", 100 * share.value)
            drawing.near(
                points, text, (100 * share.value, place), (0, 6), ha="center", va="bottom", fontsize=7.5, zorder=5
            )
    points.grid(visible=False, axis="y")
    points.margins(x=0.12)
    points.set(xlabel=f"overhead, % of\nfull depth's {label}", title="deciding, by probes")
    drawing.legend_below(canvas)
    return canvas


def _stack(axes: Axes, one: Attribution, scale: float) -> None:
    decimals = 0 if scale > 1 or max(row.total for row in one.rows) >= 100 else 2
    ends = [[0.0, 0.0] for _ in one.rows]  # of what is below zero and above
    for part in (part for part in PARTS if any(row.parts[part].value for row in one.rows)):
        label, colour = _PARTS[part]
        values = [row.parts[part].value * scale for row in one.rows]
        left = [ends[place][value > 0] for place, value in enumerate(values)]
        axes.barh(range(len(values)), values, 0.72, left=left, color=colour, label=label, zorder=2)
        for place, value in enumerate(values):
            ends[place][value > 0] += value
    for place, row in enumerate(one.rows):
        total = row.total * scale
        axes.vlines(total, place - 0.36, place + 0.36, color=drawing.INK, linewidth=1.4, zorder=3)
        drawing.near(axes, f"{total:.{decimals}f}", (max(total, ends[place][1]), place), (4, 0))
    axes.plot([], [], color=drawing.INK, linewidth=1.4, label="measured total" if one.measured else "estimated total")
    axes.grid(visible=False, axis="y")
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    axes.set_xlim(1.02 * lowest if lowest < -0.01 * highest else 0, 1.1 * highest)
