"""Figures of trainings: GREEN-CODE's Fig. 3 (loss weights), 4 (loss), 6 (reward) and 7 (optimal exits), from logs.

What is drawn was measured while training, on what was trained on; none of it says how good the result is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.appearance.pages import depth_colour
from harness.contracts.recipes import WeightsRule, loss_weights
from harness.records.estimate import Estimate, written
from reports.figures import drawing
from reports.figures.drawing import Figure, Width
from reports.training_logs import AgentLog, LiteLog, TrainingLogs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    _Rows: TypeAlias = list[tuple[Axes, Axes]]

SMOOTHING = 0.05  # share of a log that one point of a smoothed line looks at
_GREEN, _ORANGE, _BLUE = "#009e73", "#d55e00", "#0072b2"
_LONGEST_NAME = 18  # beside the size


def training_figures(trainings: Iterable[TrainingLogs]) -> list[Figure]:
    """Return every figure that the logs of artefact folders have data for, folder by folder."""
    found: list[Figure] = []
    taken: set[str] = set()
    for logs in trainings:
        prefix = f"training-{drawing.unused(drawing.slug(logs.name), taken)}"
        if logs.lite is not None:
            found += _figures_of_tuning(logs.name, logs.lite, prefix)
        found += _figures_of_agents(logs, prefix)
    return found


def _figures_of_tuning(name: str, lite: LiteLog, prefix: str) -> Iterator[Figure]:
    """Yield the loss weight of each exit, the paper's rule and this training's own, and its cross-entropy by step."""
    if lite.num_layers is not None and lite.exit_points:
        how = (
            "All exits count in every step."
            if lite.exits_per_step is None or lite.exits_per_step >= len(lite.exit_points)
            else f"Each step trains {lite.exits_per_step} random exits of {len(lite.exit_points)}, weighted up so that "
            "the expected loss has these weights."
        )
        caption = (
            f"Weight of each exit's cross-entropy in the loss of {name}; weights sum to 1. GREEN-CODE's rule "
            "(section III-D): 0.7 for exits in the first half of the layers and 0.2 for the second, each falling by "
            f"0.9 from exit to exit, 0.1 for the last layer. {how}"
        )
        draw = partial(_draw_weights, lite, lite.num_layers)
        yield Figure(f"{prefix}-loss-weights", f"LITE loss weights: {name}", caption, draw)
    if len(lite.steps) >= 2:
        on = f" on {lite.text}" if lite.text else ""
        gaps = any(set(step.cross_entropy) != set(lite.steps[0].cross_entropy) for step in lite.steps)
        caption = (
            f"Cross-entropy per token of each exit while {name} was tuned{on}: of the tokens that were "
            "being learned from, not of held-out ones. Dots: single steps. Lines: running mean over "
            f"{100 * SMOOTHING:.0f} % of an exit's steps, fewer at both ends."
            + " A step trains a few random exits and the last layer, so an exit has no dot where it was not drawn."
            * gaps
        )
        yield Figure(f"{prefix}-loss", f"LITE loss per exit: {name}", caption, partial(_draw_losses, lite))


def _figures_of_agents(logs: TrainingLogs, prefix: str) -> list[Figure]:
    """Return rewards, and optimal exits beside those that were taken, of as many agents a figure as it has room for."""
    agents = [agent for agent in logs.agents if len(agent.steps) >= 2]
    rewards, exits = [], []
    for end, which, part in drawing.parted(agents, drawing.ROWS) if agents else ():
        of_each = "".join(
            f" {agent.name}: {agent.reward}{f' on {agent.text}' if agent.text else ''}."
            for agent in part
            if agent.reward
        )
        caption = (
            f"Reward while the agents of {logs.name} were trained with PPO, exploration included. Dots: one rollout. "
            f"Lines: running mean over {100 * SMOOTHING:.0f} % of the rollouts. Rewards of different rules have "
            f"different units: panels compare an agent with itself. n counts the whole training.{of_each}"
        )
        title = f"Reward of agents: {logs.name}{which}"
        rewards.append(Figure(f"{prefix}-reward{end}", title, caption, partial(_draw_rewards, part)))
        caption = (
            f"Left: optimal exits of the tokens that the agents of {logs.name} met in training (the first layer whose "
            "token is the last layer's; the last layer itself: no exit is right) beside the exits they took in the "
            "last tenth of the training. Right: exits taken in each rollout, the layer beside the right edge, "
            "exploration included. n counts the whole training. Replayed from a trace unless an agent was trained live."
        )
        title = f"Exits of agents in training: {logs.name}{which}"
        exits.append(Figure(f"{prefix}-exits{end}", title, caption, partial(_draw_exits, part)))
    return rewards + exits


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of the :data:`SMOOTHING` share of values around each, at least 5.

    Near the beginning, where a training changes fast, fewer, and as many on either side; near the end those there are.
    """
    reach, count = max(2, round(len(values) * SMOOTHING) // 2), len(values)
    return [
        fmean(values[place - min(reach, place) : place + min(reach, place if place < count / 2 else reach) + 1])
        for place in range(count)
    ]


def exit_colours(layers: Sequence[int]) -> dict[int, str]:
    """Return a colour per exit layer by its place among the exits, so that neighbours can be told apart."""
    return {layer: depth_colour(0.1 + 0.9 * place / max(1, len(layers) - 1)) for place, layer in enumerate(layers)}


def _draw_weights(lite: LiteLog, num_layers: int, width: Width) -> Canvas:
    paper, own = "GREEN-CODE's rule", lite.weights_rule
    rules: dict[str, tuple[WeightsRule, str, str]] = {paper: ("green-code", _GREEN, "//")}
    if own == "green-code":
        rules = {f"{paper}, as trained here": (own, _BLUE, "")}
    elif own is not None:
        rules[f"this training ({'all alike' if own == 'uniform' else own})"] = (own, _BLUE, "")
    canvas, axes = drawing.blank(width, 2.4)
    for offset, (label, (rule, colour, hatch)) in zip(drawing.offsets(len(rules)), rules.items(), strict=True):
        weights = loss_weights(lite.exit_points, num_layers, rule)
        places = [place + offset for place in range(len(weights))]
        estimates = [Estimate(value=weight) for weight in weights]
        drawing.bars(axes, places, estimates, 0.8 / len(rules), color=colour, hatch=hatch, label=label)
        for place, weight in zip(places, weights, strict=True) if width == "text" else ():
            drawing.near(axes, f"{weight:.3f}", (place, weight), (0, 2), ha="center", va="bottom", rotation=90)
    axes.set_xticks(range(len(weights)), [*map(str, lite.exit_points), f"{num_layers}\n(last)"])
    axes.margins(y=0.22)
    axes.set(xlabel="exit layer", ylabel="loss weight")
    drawing.legend_below(canvas)
    return canvas


def _draw_losses(lite: LiteLog, width: Width) -> Canvas:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    by_layer: dict[int, tuple[list[int], list[float]]] = {}
    for step in lite.steps:
        for layer, loss in step.cross_entropy.items():
            at, losses = by_layer.setdefault(layer, ([], []))
            at.append(step.step)
            losses.append(loss)
    last = lite.num_layers or max(by_layer)
    colours = {**exit_colours(sorted(by_layer)), last: drawing.INK}
    canvas, axes = drawing.blank(width, 3.2)
    ends = {}
    for layer, (at, losses) in sorted(by_layer.items()):
        line = _smoothed(axes, at, losses, colours[layer], linewidth=2.2 if layer == last else 1.5)
        ends[f"layer {layer}{' (last)' if layer == last else ''}"] = (line[-1], colours[layer])
    values = sorted(loss for _, losses in by_layer.values() for loss in losses)
    if values[0] > 0 and values[-1] > 4 * values[len(values) // 2]:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.set(xlabel="optimiser step", ylabel="cross-entropy, nats per token", xlim=(0, lite.steps[-1].step))
    drawing.say_size(axes, f"n = {len(lite.steps):,} optimiser steps")
    _label_ends(axes, ends)
    return canvas


def _smoothed(axes: Axes, at: Sequence[float], values: Sequence[float], colour: str, **look: Any) -> list[float]:
    """Draw single values as dots and their running mean as a line, which is returned."""
    axes.plot(at, values, ".", color=colour, markersize=3, alpha=0.35, markeredgewidth=0)
    line = smoothed(values)
    axes.plot(at, line, color=colour, zorder=3, **look)
    return line


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write each line's name right of the axes at its last value, moved up or down as far as keeps names apart."""
    least = 10.5 / (axes.bbox.height * 72 / axes.figure.dpi)  # of the axes' height, which is a little less in the end
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    ordered = sorted(ends.items(), key=lambda item: item[1][0])
    heights = [float(to_axes.transform((0, y))[1]) for _, (y, _) in ordered]
    spots, lowest, highest = heights.copy(), -1.0, 1.0
    for place, height in enumerate(heights):
        spots[place] = lowest = max(height, lowest + least)
    for place in reversed(range(len(spots))):
        spots[place] = min(spots[place], highest)
        highest = spots[place] - least
    for (label, (_, colour)), here, spot in zip(ordered, heights, spots, strict=True):
        xs, ys = [1, 1.025, 1.035], [here, spot, spot]
        axes.plot(xs, ys, color=colour, linewidth=1.4, transform=axes.transAxes, clip_on=False)
        axes.text(1.042, spot, label, transform=axes.transAxes, va="center", fontsize=7.5, color=drawing.INK)


def _rows_of_agents(agents: Sequence[AgentLog], width: Width, height: float) -> tuple[Canvas, _Rows]:
    """Return a canvas with two panels for each agent, under its name."""
    canvas, flat = drawing.panels(width, 2 * len(agents), height if width == "text" else drawing.STACKED, across=2)
    rows = list(zip(flat[::2], flat[1::2], strict=True))
    for (left, right), agent in zip(rows, agents, strict=True):
        left.set_title(drawing.shortened(agent.name, _LONGEST_NAME))
        drawing.say_size(right, f"n = {agent.steps[-1].steps:,} decisions")
    rows[-1][1].set_xlabel("decisions, thousands")
    return canvas, rows


def _draw_rewards(agents: Sequence[AgentLog], width: Width) -> Canvas:
    canvas, rows = _rows_of_agents(agents, width, 1.6)
    for row, agent in zip(rows, agents, strict=True):
        ended = {step.steps: step.reward_per_episode for step in agent.steps if step.reward_per_episode is not None}
        each = {step.steps: step.reward_per_step for step in agent.steps}
        for axes, what, rewards in zip(row, ("reward per episode", "reward per decision"), (ended, each), strict=True):
            values = [*rewards.values()]
            axes.axhline(0, color=drawing.QUIET, linewidth=0.8)
            _smoothed(axes, [steps / 1000 for steps in rewards], values, _BLUE, linewidth=1.6)
            axes.set(ylabel=what, xlim=(0, agent.steps[-1].steps / 1000))
            later = values[len(values) // 20 :]
            low, high = min(*later, 0.0, 0.0), max(*later, 0.0, 0.0)
            if later and max(values) - min(values) > 2 * (high - low) > 0:  # the beginning would squeeze all the rest
                axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
                where = f"begins at {written('{:.3g}', values[0])}, outside"
                axes.text(0.98, 0.05, where, transform=axes.transAxes, ha="right", fontsize=7, color=drawing.INK)
        drawing.say_size(row[0], f"n = {sum(step.episodes for step in agent.steps):,} episodes")
    rows[-1][0].set_xlabel("decisions, thousands")
    return canvas


def _draw_exits(agents: Sequence[AgentLog], width: Width) -> Canvas:
    canvas, rows = _rows_of_agents(agents, width, 2.0)
    for (left, right), agent in zip(rows, agents, strict=True):
        layers = sorted({*agent.optimal_exits, *(layer for step in agent.steps for layer in step.exits)})
        _histogram(left, agent, layers)
        left.margins(y=0.45 if width == "text" else 0.8)  # room for the legend
        at = [step.steps / 1000 for step in agent.steps]
        shares = [[100 * step.exits.get(layer, 0.0) for step in agent.steps] for layer in layers]
        right.stackplot(at, shares, colors=exit_colours(layers).values(), linewidth=0)
        middles = [
            sum(share[-1] for share in shares[: place + 1]) - shares[place][-1] / 2 for place in range(len(layers))
        ]
        for layer, share, middle in zip(layers, shares, middles, strict=True):
            if share[-1] >= 7:
                drawing.near(right, str(layer), (at[-1], middle), (3, 0), path_effects=[])
        right.grid(visible=False)
        right.set(ylabel="tokens, %", ylim=(0, 100), xlim=(at[0], at[-1]))
        right.set_title("exits taken", fontweight="normal")
    rows[-1][0].set_xlabel("layer")
    return canvas


def _histogram(axes: Axes, agent: AgentLog, layers: Sequence[int]) -> None:
    tail = agent.steps[-max(1, len(agent.steps) // 10) :]
    taken = {layer: sum(step.exits.get(layer, 0.0) for step in tail) / len(tail) for layer in layers}
    total = sum(agent.optimal_exits.values())
    series = [("taken at the end", taken, _BLUE, "")]
    if total:
        optimal = {layer: agent.optimal_exits.get(layer, 0) / total for layer in layers}
        series.insert(0, ("optimal", optimal, _ORANGE, "//"))
    for offset, (label, shares, colour, hatch) in zip(drawing.offsets(len(series)), series, strict=True):
        mean = sum(layer * share for layer, share in shares.items()) / (sum(shares.values()) or 1)
        places = [place + offset for place in range(len(layers))]
        estimates = [Estimate(value=100 * shares[layer]) for layer in layers]
        name = f"{label}: mean layer {mean:.1f}"
        drawing.bars(axes, places, estimates, 0.8 / len(series), color=colour, hatch=hatch, label=name)
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_ylabel("tokens, %")
    drawing.say_size(axes, f"n = {total:,} tokens" if total else f"n = {agent.steps[-1].steps:,} decisions")
    axes.legend(loc="upper center", fontsize=7)
