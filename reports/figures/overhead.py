"""Where the time of a request goes and what deciding costs (the form of GREEN-CODE's Table IV).

Runs of ``--attribute`` have it. The bars are the fit of :mod:`reports.summary.attribution`, stacked in the order of a
request; the points beside them are the other way of measuring, probes that never exit less full depth, and share
nothing with the fit but full depth's windows.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from harness.records.cost import PARTS, Attribution
from reports.figures.drawing import INK, Figure, Width, legend_below, look_of, panels, say_size, shortened, slug
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
        name = f"{slug(run.name)}-{slug(one.where)}-overhead-{one.quantity}"
        title = f"Where the {one.quantity} of a request goes: {one.where}"
        found.append(Figure(name, title, _caption(run, one), partial(_draw, run, one)))
    return found


def absence(run: RecordedRun) -> str:
    """Return why a run has no such figure; empty where it has."""
    if run.summary.attributions:
        return ""
    return "no figure of overhead: nothing was attributed (run with --attribute, batch 1 and a KV cache)"


def _caption(run: RecordedRun, one: Attribution) -> str:
    model = run.manifest.model
    numbers = (model.stored(one.weights_format) if one.weights_format else model).numbers
    parts = [
        f"Run {run.name}: {one.task}, {model.name}, {model.weights} weights, {numbers}; {run.summary.machine}.",
        f"Left: a request taken apart by least squares over {one.blocks} blocks of samples; the fit leaves "
        f"{100 * one.residual:.1f} % of a window unexplained (median). "
        "Right: the overhead of deciding, a probe that never exits less full depth; 95 % intervals, bootstrap over "
        "blocks. A strategy without a point was not probed.",
    ]
    if not one.measured:
        said = energy_origin(one.source)
        parts.append(f"Energy is {said}, not measured: it adds nothing to the time and decides nothing.")
    if run.state:
        parts.append(f"This run is not complete: {run.state}.")
    return " ".join(parts)


def _draw(run: RecordedRun, one: Attribution, width: Width) -> Canvas:
    largest, unit = max(row.total for row in one.rows), "s" if one.quantity == "time" else "J"
    scale, unit = (1.0, unit) if largest >= (10 if unit == "s" else 1) else (1e3, f"m{unit}")
    label = one.quantity if one.measured else f"estimated {one.quantity}"
    ratios: dict[str, Any] = {"width_ratios": (3, 1.6)} if width == "text" else {}
    height = (0.34 if width == "text" else 0.24) * len(one.rows) + 1.0
    canvas, (bars, points) = panels(width, 2, height, across=2, sharey=True, **ratios)
    _stack(bars, one, scale)
    names = [shortened(row.operating_point, 34 if width == "text" else 24) for row in one.rows]
    bars.set_yticks(range(len(one.rows)), names)
    bars.invert_yaxis()
    bars.set_xlabel(f"{label} of a request ({unit})")
    bars.set_title("by the fit")
    say_size(bars, f"n = {one.blocks} blocks")
    _overheads(points, run, one)
    points.set_xlabel(f"overhead, % of\nfull depth's {label}")
    points.set_title("deciding, by probes")
    legend_below(canvas, *bars.get_legend_handles_labels())
    return canvas


def _stack(axes: Axes, one: Attribution, scale: float) -> None:
    shown = [part for part in PARTS if any(row.parts[part].value for row in one.rows)]
    decimals = 0 if scale > 1 or max(row.total for row in one.rows) >= 100 else 2
    ends = [[0.0, 0.0] for _ in one.rows]  # of what is below zero and above
    for part in shown:
        label, colour = _PARTS[part]
        values = [row.parts[part].value * scale for row in one.rows]
        left = [ends[place][value > 0] for place, value in enumerate(values)]
        axes.barh(range(len(values)), values, 0.72, left=left, color=colour, label=label, zorder=2)
        for place, value in enumerate(values):
            ends[place][value > 0] += value
    for place, row in enumerate(one.rows):
        total = row.total * scale
        axes.vlines(total, place - 0.36, place + 0.36, color=INK, linewidth=1.4, zorder=3)
        end = (max(total, ends[place][1]), place)
        axes.annotate(f"{total:.{decimals}f}", end, (4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.plot([], [], color=INK, linewidth=1.4, label="measured total" if one.measured else "estimated total")
    axes.grid(visible=False, axis="y")
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    axes.set_xlim(1.02 * lowest if lowest < -0.01 * highest else 0, 1.1 * highest)


def _overheads(axes: Axes, run: RecordedRun, one: Attribution) -> None:
    from matplotlib.patheffects import withStroke

    strategies = {point.name: point.strategy for point in run.manifest.operating_points}
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for place, row in enumerate(one.rows):
        share = row.overhead_of_full
        if share is None:
            continue
        look = look_of(strategies.get(row.operating_point, row.operating_point))
        if share.interval is not None:
            axes.hlines(place, 100 * share.interval[0], 100 * share.interval[1], color=look.colour, linewidth=1.2)
        axes.plot(100 * share.value, place, look.marker, color=look.colour, markersize=6)
        text = f"{100 * share.value:.1f}".replace("-", "−")
        axes.annotate(
            text, (100 * share.value, place), (0, 6), textcoords="offset points", ha="center", fontsize=7.5,
            path_effects=[withStroke(linewidth=2, foreground="white")], zorder=5,
        )  # fmt: skip
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
