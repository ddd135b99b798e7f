"""Figures of trainings: GREEN-CODE's Fig. 3 (loss weights), 4 (loss), 6 (reward) and 7 (optimal exits), from logs.

What is drawn was measured while training, on what was trained on; none of it says how good the result is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.appearance.pages import depth_colour
from harness.contracts.recipes import WeightsRule, loss_weights
from reports.figures.drawing import (
    INK,
    QUIET,
    ROWS,
    STACKED,
    Figure,
    Width,
    blank,
    legend_below,
    offsets,
    panels,
    say_size,
    shortened,
    slug,
)
from reports.training_logs import AgentLog, LiteLog, TrainingLogs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    _Rows: TypeAlias = list[tuple[Axes, Axes]]

SMOOTHING = 0.05
"""Share of a log that one point of a smoothed line looks at."""
_GREEN, _ORANGE, _BLUE = "#009e73", "#d55e00", "#0072b2"
_LONGEST_NAME = 18  # beside the size


def training_figures(trainings: Iterable[TrainingLogs]) -> list[Figure]:
    """Return every figure that the logs of artefact folders have data for, folder by folder."""
    found: list[Figure] = []
    taken: set[str] = set()
    for logs in trainings:
        stem = slug(logs.name)
        prefix = next(name for name in (stem, *(f"{stem}-{n}" for n in range(2, len(taken) + 3))) if name not in taken)
        taken.add(prefix)
        if logs.lite is not None:
            found += _figures_of_tuning(logs.name, logs.lite, f"training-{prefix}")
        found += _figures_of_agents(logs, f"training-{prefix}")
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
    parts = [agents[start : start + ROWS] for start in range(0, len(agents), ROWS)]
    rewards, exits = [], []
    for number, part in enumerate(parts, 1):
        end, which = (f"-{number}", f" ({number} of {len(parts)})") if len(parts) > 1 else ("", "")
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
    reach = max(2, round(len(values) * SMOOTHING) // 2)
    windows = (
        values[place - min(reach, place) : place + min(reach, place if place < len(values) / 2 else reach) + 1]
        for place in range(len(values))
    )
    return [sum(window) / len(window) for window in windows]


def exit_colours(layers: Sequence[int]) -> dict[int, str]:
    """Return a colour per exit layer by its place among the exits, so that neighbours can be told apart."""
    return {layer: depth_colour(0.1 + 0.9 * place / max(1, len(layers) - 1)) for place, layer in enumerate(layers)}


def _draw_weights(lite: LiteLog, num_layers: int, width: Width) -> Canvas:
    paper, own = "GREEN-CODE's rule", lite.weights_rule
    rules: dict[str, tuple[WeightsRule, str, str]] = {paper: ("green-code", _GREEN, "//")}
    if own == "green-code":
        rules = {f"{paper}, as trained here": (own, _BLUE, "")}
    elif own is not None:
        rules["this training (all alike)"] = (own, _BLUE, "")
    canvas, axes = blank(width, 2.4)
    for offset, (label, (rule, colour, hatch)) in zip(offsets(len(rules)), rules.items(), strict=True):
        weights = loss_weights(lite.exit_points, num_layers, rule)
        places = [place + offset for place in range(len(weights))]
        look: Any = {"color": colour, "hatch": hatch, "edgecolor": "white"}
        bars = axes.bar(places, weights, 0.8 / len(rules) * 0.94, label=label, **look)
        if width == "text":
            axes.bar_label(bars, [f"{weight:.3f}" for weight in weights], fontsize=7, padding=2, color=INK, rotation=90)
    axes.set_xticks(range(len(weights)), [*map(str, lite.exit_points), f"{num_layers}\n(last)"])
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.22)
    axes.set(xlabel="exit layer", ylabel="loss weight")
    legend_below(canvas, *axes.get_legend_handles_labels())
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
    colours = {**exit_colours(sorted(by_layer)), last: INK}
    canvas, axes = blank(width, 3.2)
    ends = {}
    for layer, (at, losses) in sorted(by_layer.items()):
        axes.plot(at, losses, ".", color=colours[layer], markersize=3, alpha=0.35, markeredgewidth=0)
        line = smoothed(losses)
        axes.plot(at, line, color=colours[layer], linewidth=2.2 if layer == last else 1.5, zorder=3)
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
    say_size(axes, f"n = {len(lite.steps):,} optimiser steps")
    _label_ends(axes, ends)
    return canvas


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write each line's name right of the axes at its last value, moved up or down as little as keeps names apart."""
    height = axes.bbox.height * 72 / axes.figure.dpi  # points; a little less in the end
    ordered = sorted(ends.items(), key=lambda item: item[1][0])
    axes.autoscale_view()
    heights = [float(axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1]) for _, (y, _) in ordered]
    for (label, (_, colour)), here, spot in zip(ordered, heights, _apart(heights, 10.5 / height), strict=True):
        xs, ys = [1, 1.025, 1.035], [here, spot, spot]
        axes.plot(xs, ys, color=colour, linewidth=1.4, transform=axes.transAxes, clip_on=False)
        axes.text(1.042, spot, label, transform=axes.transAxes, va="center", fontsize=7.5, color=INK)


def _apart(wanted: Sequence[float], least: float) -> Iterator[float]:
    """Yield ascending positions, each at least so far from the one before, around the wanted ones."""
    blocks: list[tuple[float, int]] = []  # centre, members
    for position in wanted:
        centre, members = position, 1
        while blocks and blocks[-1][0] + least * blocks[-1][1] / 2 > centre - least * members / 2:
            before, count = blocks.pop()
            centre, members = (before * count + centre * members) / (count + members), count + members
        blocks.append((centre, members))
    for centre, members in blocks:
        yield from (centre + least * (place - (members - 1) / 2) for place in range(members))


def _rows_of_agents(agents: Sequence[AgentLog], width: Width, height: float) -> tuple[Canvas, _Rows]:
    """Return a canvas with two panels for each agent, under its name."""
    canvas, flat = panels(width, 2 * len(agents), height if width == "text" else STACKED, across=2)
    rows = list(zip(flat[::2], flat[1::2], strict=True))
    for (left, right), agent in zip(rows, agents, strict=True):
        left.set_title(shortened(agent.name, _LONGEST_NAME))
        say_size(right, _decisions(agent))
    rows[-1][1].set_xlabel("decisions, thousands")
    return canvas, rows


def _decisions(agent: AgentLog) -> str:
    return f"n = {agent.steps[-1].steps:,} decisions"


def _draw_rewards(agents: Sequence[AgentLog], width: Width) -> Canvas:
    canvas, rows = _rows_of_agents(agents, width, 1.6)
    for row, agent in zip(rows, agents, strict=True):
        ended = [step for step in agent.steps if step.reward_per_episode is not None]
        columns = (
            ("reward per episode", ended, [step.reward_per_episode or 0.0 for step in ended]),
            ("reward per decision", agent.steps, [step.reward_per_step for step in agent.steps]),
        )
        for axes, (what, steps, values) in zip(row, columns, strict=True):
            at = [step.steps / 1000 for step in steps]
            axes.axhline(0, color=QUIET, linewidth=0.8)
            axes.plot(at, values, ".", color=_BLUE, markersize=3, alpha=0.4, markeredgewidth=0)
            axes.plot(at, smoothed(values), color=_BLUE, linewidth=1.6)
            axes.set(ylabel=what, xlim=(0, agent.steps[-1].steps / 1000))
            _leave_out_the_beginning(axes, values)
        say_size(row[0], f"n = {sum(step.episodes for step in agent.steps):,} episodes")
    rows[-1][0].set_xlabel("decisions, thousands")
    return canvas


def _leave_out_the_beginning(axes: Axes, values: Sequence[float]) -> None:
    """Where the first twentieth would squeeze all the rest, cut it off and say where it began."""
    later = values[len(values) // 20 :]
    if not later:
        return
    low, high = min(*later, 0.0), max(*later, 0.0)
    room = 0.06 * (high - low)
    if max(values) - min(values) > 2 * (high - low) > 0:
        axes.set_ylim(low - room, high + room)
        where = f"begins at {values[0]:.3g}, outside".replace("-", "−")
        axes.text(0.98, 0.05, where, transform=axes.transAxes, ha="right", fontsize=7, color=INK)


def _draw_exits(agents: Sequence[AgentLog], width: Width) -> Canvas:
    canvas, rows = _rows_of_agents(agents, width, 2.0)
    for (left, right), agent in zip(rows, agents, strict=True):
        layers = sorted({*agent.optimal_exits, *(layer for step in agent.steps for layer in step.exits)})
        _histogram(left, agent, layers)
        left.margins(y=0.45 if width == "text" else 0.8)  # room for the legend
        _stack(right, agent, layers)
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
    for offset, (label, shares, colour, hatch) in zip(offsets(len(series)), series, strict=True):
        mean = sum(layer * share for layer, share in shares.items()) / (sum(shares.values()) or 1)
        axes.bar(
            [place + offset for place in range(len(layers))], [100 * shares[layer] for layer in layers],
            0.8 / len(series) * 0.94, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4,
            label=f"{label}: mean layer {mean:.1f}",
        )  # fmt: skip
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("tokens, %")
    say_size(axes, f"n = {total:,} tokens" if total else _decisions(agent))
    axes.legend(loc="upper center", fontsize=7)


def _stack(axes: Axes, agent: AgentLog, layers: Sequence[int]) -> None:
    at = [step.steps / 1000 for step in agent.steps]
    bottom, colours = [0.0] * len(at), exit_colours(layers)
    for layer in layers:
        top = [low + 100 * step.exits.get(layer, 0.0) for low, step in zip(bottom, agent.steps, strict=True)]
        axes.fill_between(at, bottom, top, color=colours[layer], linewidth=0)
        if top[-1] - bottom[-1] >= 7:
            axes.annotate(
                str(layer), (at[-1], (bottom[-1] + top[-1]) / 2), xytext=(3, 0), textcoords="offset points",
                va="center", fontsize=7, annotation_clip=False,
            )  # fmt: skip
        bottom = top
    axes.grid(visible=False)
    axes.set(ylabel="tokens, %", ylim=(0, 100), xlim=(at[0], at[-1]))
