"""Figures of agents in training: GREEN-CODE's Fig. 6 (reward) and Fig. 7 (optimal exits), from PPO's logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from reports.figures.curves import SMOOTHING, exit_colours, smoothed
from reports.figures.figure import Figure
from reports.figures.layout import ROWS, STACKED, Width, panels, say_size
from reports.figures.style import INK, QUIET
from reports.figures.task_table import shortened
from reports.training.logs import AgentLog, TrainingLogs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["exits_of_training", "rewards"]

_OPTIMAL, _TAKEN = "#d55e00", "#0072b2"
_LONGEST_NAME = 18  # beside the size


def rewards(logs: TrainingLogs, prefix: str) -> list[Figure]:
    """Return the reward per episode and per decision of all agents of a folder; nothing without agents."""
    return [
        Figure(
            f"training-{prefix}-reward{number}",
            f"Reward of agents: {logs.name}{which}",
            f"Reward while the agents of {logs.name} were trained with PPO, exploration included. Dots: one rollout. "
            f"Lines: running mean over {100 * SMOOTHING:.0f} % of the rollouts. Rewards of different rules have "
            "different units: panels compare an agent with itself. n counts the whole training."
            + "".join(f" {agent.name}: {agent.reward}{_on(agent)}." for agent in agents if agent.reward),
            partial(_rewards, agents),
        )
        for number, which, agents in _parts(logs)
    ]


def exits_of_training(logs: TrainingLogs, prefix: str) -> list[Figure]:
    """Return optimal exits beside those that were taken, and how the latter changed; nothing without agents."""
    caption = (
        f"Left: optimal exits of the tokens that the agents of {logs.name} met in training (the first layer whose "
        "token is the last layer's; the last layer itself: no exit is right) beside the exits they took in the last "
        "tenth of the training. Right: exits taken in each rollout, the layer beside the right edge, exploration "
        "included. n counts the whole training. Replayed from a trace unless an agent was trained live."
    )
    return [
        Figure(
            f"training-{prefix}-exits{number}",
            f"Exits of agents in training: {logs.name}{which}",
            caption,
            partial(_exits, agents),
        )
        for number, which, agents in _parts(logs)
    ]


def _parts(logs: TrainingLogs) -> Iterator[tuple[str, str, Sequence[AgentLog]]]:
    """Yield agents that a figure has room for, with what its name and its title end with."""
    agents = [agent for agent in logs.agents if len(agent.steps) >= 2]
    parts = [agents[start : start + ROWS] for start in range(0, len(agents), ROWS)]
    for number, part in enumerate(parts, 1):
        yield (f"-{number}", f" ({number} of {len(parts)})", part) if len(parts) > 1 else ("", "", part)


# ------------------------------------------------------------------------------------- drawing


def _rewards(agents: Sequence[AgentLog], width: Width) -> Canvas:
    canvas, flat = panels(width, 2 * len(agents), 1.6 if width == "text" else STACKED, across=2)
    grid = list(zip(flat[::2], flat[1::2], strict=True))
    for row, agent in zip(grid, agents, strict=True):
        steps = [step.steps / 1000 for step in agent.steps]
        ended = [
            (step.steps / 1000, step.reward_per_episode) for step in agent.steps if step.reward_per_episode is not None
        ]
        columns = (
            ("reward per episode", [at for at, _ in ended], [reward for _, reward in ended]),
            ("reward per decision", steps, [step.reward_per_step for step in agent.steps]),
        )
        for axes, (what, at, values) in zip(row, columns, strict=True):
            axes.axhline(0, color=QUIET, linewidth=0.8)
            axes.plot(at, values, ".", color=_TAKEN, markersize=3, alpha=0.4, markeredgewidth=0)
            axes.plot(at, smoothed(values), color=_TAKEN, linewidth=1.6)
            axes.set(ylabel=what, xlim=(0, steps[-1]))
            _leave_out_the_beginning(axes, values)
        row[0].set_title(shortened(agent.name, _LONGEST_NAME))
        say_size(row[0], f"n = {sum(step.episodes for step in agent.steps):,} episodes")
        say_size(row[1], _decisions(agent))
    for axes in grid[-1]:
        axes.set_xlabel("decisions, thousands")
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


def _exits(agents: Sequence[AgentLog], width: Width) -> Canvas:
    canvas, flat = panels(width, 2 * len(agents), 2.0 if width == "text" else STACKED, across=2)
    grid = list(zip(flat[::2], flat[1::2], strict=True))
    for row, agent in zip(grid, agents, strict=True):
        layers = sorted({*agent.optimal_exits, *(layer for step in agent.steps for layer in step.exits)})
        _histogram(row[0], agent, layers)
        row[0].margins(y=0.45 if width == "text" else 0.8)  # room for the legend
        _stack(row[1], agent, layers)
        row[0].set_title(shortened(agent.name, _LONGEST_NAME))
        row[1].set_title("exits taken", fontweight="normal")
        say_size(row[1], _decisions(agent))
    grid[-1][0].set_xlabel("layer")
    grid[-1][1].set_xlabel("decisions, thousands")
    return canvas


def _histogram(axes: Axes, agent: AgentLog, layers: Sequence[int]) -> None:
    tail = agent.steps[-max(1, len(agent.steps) // 10) :]
    taken = {layer: sum(step.exits.get(layer, 0.0) for step in tail) / len(tail) for layer in layers}
    total = sum(agent.optimal_exits.values())
    series: list[tuple[str, Mapping[int, float], str, str]] = [("taken at the end", taken, _TAKEN, "")]
    if total:
        optimal = {layer: agent.optimal_exits.get(layer, 0) / total for layer in layers}
        series.insert(0, ("optimal", optimal, _OPTIMAL, "//"))
    width = 0.8 / len(series)
    for number, (label, shares, colour, hatch) in enumerate(series):
        places = [place + width * (number - (len(series) - 1) / 2) for place in range(len(layers))]
        mean = sum(layer * share for layer, share in shares.items()) / (sum(shares.values()) or 1)
        axes.bar(
            places, [100 * shares[layer] for layer in layers], width * 0.94, color=colour, hatch=hatch,
            edgecolor="white", linewidth=0.4, label=f"{label}: mean layer {mean:.1f}",
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
        middle = (bottom[-1] + top[-1]) / 2
        if top[-1] - bottom[-1] >= 7:
            axes.annotate(
                str(layer), (at[-1], middle), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7,
                annotation_clip=False,
            )  # fmt: skip
        bottom = top
    axes.grid(visible=False)
    axes.set(ylabel="tokens, %", ylim=(0, 100), xlim=(at[0], at[-1]))


def _decisions(agent: AgentLog) -> str:
    return f"n = {agent.steps[-1].steps:,} decisions"


def _on(agent: AgentLog) -> str:
    return f" on {agent.text}" if agent.text else ""
