"""Figures of trainings: GREEN-CODE's Fig. 3 (loss weights), 4 (loss), 6 (reward) and 7 (optimal exits), from logs.

What is drawn was measured while training, on what was trained on; none of it says how good the result is.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from harness.contracts.loss_weights import loss_weights
from reports.figures.agents import exits_of_training, rewards
from reports.figures.curves import SMOOTHING, exit_colours, label_ends, smoothed
from reports.figures.figure import Figure, slug
from reports.figures.layout import Width, blank, legend_below, say_size
from reports.figures.style import INK
from reports.training.logs import LiteLog, TrainingLogs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["cross_entropy", "loss_weight_bars", "training_figures"]

_PAPER, _OWN = "#009e73", "#0072b2"


def training_figures(trainings: Iterable[TrainingLogs]) -> list[Figure]:
    """Return every figure that the logs of artefact folders have data for, folder by folder."""
    found: list[Figure] = []
    taken: set[str] = set()
    for logs in trainings:
        stem = slug(logs.name)
        prefix = next(name for name in (stem, *(f"{stem}-{n}" for n in range(2, len(taken) + 3))) if name not in taken)
        taken.add(prefix)
        for make in (loss_weight_bars, cross_entropy, rewards, exits_of_training):
            found.extend(make(logs, prefix))
    return found


def loss_weight_bars(logs: TrainingLogs, prefix: str) -> list[Figure]:
    """Return the loss weight of each exit: the paper's rule, and this training's where it is another; or nothing."""
    lite = logs.lite
    if lite is None or lite.num_layers is None or not lite.exit_points:
        return []
    how = (
        "All exits count in every step."
        if lite.exits_per_step is None or lite.exits_per_step >= len(lite.exit_points)
        else f"Each step trains {lite.exits_per_step} random exits of {len(lite.exit_points)}, weighted up so that the "
        "expected loss has these weights."
    )
    caption = (
        f"Weight of each exit's cross-entropy in the loss of {logs.name}; weights sum to 1. GREEN-CODE's rule "
        "(section III-D): 0.7 for exits in the first half of the layers and 0.2 for the second, each falling by 0.9 "
        f"from exit to exit, 0.1 for the last layer. {how}"
    )
    return [Figure(f"training-{prefix}-loss-weights", f"LITE loss weights: {logs.name}", caption, partial(_bars, lite))]


def cross_entropy(logs: TrainingLogs, prefix: str) -> list[Figure]:
    """Return the cross-entropy of each exit over the steps; nothing where none was logged."""
    lite = logs.lite
    if lite is None or len(lite.steps) < 2:
        return []
    on = f" on {lite.text}" if lite.text else ""
    gaps = any(set(step.cross_entropy) != set(lite.steps[0].cross_entropy) for step in lite.steps)
    caption = (
        f"Cross-entropy per token of each exit while {logs.name} was tuned{on}: of the tokens that were "
        "being learned from, not of held-out ones. Dots: single steps. Lines: running mean over "
        f"{100 * SMOOTHING:.0f} % of an exit's steps, fewer at both ends. "
        + ("A step trains a few random exits and the last layer, so an exit has no dot where it was not drawn." * gaps)
    )
    return [
        Figure(f"training-{prefix}-loss", f"LITE loss per exit: {logs.name}", caption.strip(), partial(_losses, lite))
    ]


# ------------------------------------------------------------------------------------- drawing


def _bars(lite: LiteLog, width: Width) -> Canvas:
    assert lite.num_layers is not None
    layers = (*lite.exit_points, lite.num_layers)
    series = {"GREEN-CODE's rule": (loss_weights(lite.exit_points, lite.num_layers, "green-code"), _PAPER, "//")}
    if lite.weights_rule == "green-code":
        series = {"GREEN-CODE's rule, as trained here": (series["GREEN-CODE's rule"][0], _OWN, "")}
    elif lite.weights_rule is not None:
        own = loss_weights(lite.exit_points, lite.num_layers, lite.weights_rule)
        series["this training (all alike)"] = (own, _OWN, "")
    canvas = blank(width, 2.4)
    axes = canvas.subplots()
    wide = 0.8 / len(series)
    for number, (label, (weights, colour, hatch)) in enumerate(series.items()):
        places = [place + wide * (number - (len(series) - 1) / 2) for place in range(len(layers))]
        bars = axes.bar(places, weights, wide * 0.94, label=label, color=colour, hatch=hatch, edgecolor="white")
        if width == "text":
            axes.bar_label(bars, [f"{weight:.3f}" for weight in weights], fontsize=7, padding=2, color=INK, rotation=90)
    axes.set_xticks(range(len(layers)), [*map(str, lite.exit_points), f"{lite.num_layers}\n(last)"])
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.22)
    axes.set(xlabel="exit layer", ylabel="loss weight")
    legend_below(canvas, *axes.get_legend_handles_labels())
    return canvas


def _losses(lite: LiteLog, width: Width) -> Canvas:
    by_layer: dict[int, tuple[list[int], list[float]]] = {}
    for step in lite.steps:
        for layer, loss in step.cross_entropy.items():
            at, losses = by_layer.setdefault(layer, ([], []))
            at.append(step.step)
            losses.append(loss)
    last = lite.num_layers or max(by_layer)
    colours = {**exit_colours(sorted(by_layer)), last: INK}
    canvas = blank(width, 3.2)
    axes = canvas.subplots()
    ends = {}
    for layer, (at, losses) in sorted(by_layer.items()):
        axes.plot(at, losses, ".", color=colours[layer], markersize=3, alpha=0.35, markeredgewidth=0)
        line = smoothed(losses)
        axes.plot(at, line, color=colours[layer], linewidth=2.2 if layer == last else 1.5, zorder=3)
        ends[f"layer {layer}{' (last)' if layer == last else ''}"] = (line[-1], colours[layer])
    values = sorted(loss for _, losses in by_layer.values() for loss in losses)
    if values[0] > 0 and values[-1] > 4 * values[len(values) // 2]:
        axes.set_yscale("log")
        _plain_numbers(axes)
    else:
        axes.set_ylim(bottom=0)
    axes.set(xlabel="optimiser step", ylabel="cross-entropy, nats per token", xlim=(0, lite.steps[-1].step))
    say_size(axes, f"n = {len(lite.steps):,} optimiser steps")
    label_ends(axes, ends)
    return canvas


def _plain_numbers(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
