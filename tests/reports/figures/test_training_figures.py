"""Figures of trainings: which there are, what their captions own up to, and that every one can be drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness.contracts.recipes import loss_weights
from reports.figures.training import smoothed, training_figures
from reports.training_logs import AgentLog, AgentStep, LiteLog, LiteStep, TrainingLogs
from tests.reports.figures.on_paper import check_on_paper, drawn


def lite(**changes: Any) -> LiteLog:
    steps = tuple(LiteStep(n, {(4, 6)[n % 2]: 3.0 - n / 100, 12: 2.0}) for n in range(1, 41))
    return dataclasses.replace(LiteLog(steps, (4, 6), 12, "uniform", 1, "py150"), **changes)


def agent(name: str, **changes: Any) -> AgentLog:
    steps = tuple(AgentStep(100 * n, n / 10, None if n == 1 else n, 3, {4: 0.5, 12: 0.5}) for n in range(1, 30))
    return dataclasses.replace(AgentLog(name, steps, {4: 30, 12: 10}, "savings, penalty 4", "py150"), **changes)


def logs(name: str = "tiny", *, tuned: LiteLog | None = None, agents: tuple[AgentLog, ...] = ()) -> TrainingLogs:
    return TrainingLogs(Path("elsewhere") / name, tuned, agents, ())


def test_one_figure_each_of_what_there_is() -> None:
    found = training_figures([logs(tuned=lite(), agents=(agent("rl"), agent("rl-java")))])
    assert [figure.name for figure in found] == [
        "training-tiny-loss-weights", "training-tiny-loss", "training-tiny-reward", "training-tiny-exits",
    ]  # fmt: skip
    assert [figure.name for figure in training_figures([logs(tuned=lite(num_layers=None))])] == ["training-tiny-loss"]
    assert training_figures([logs(agents=(agent("rl", steps=()),)), logs(tuned=lite(steps=(), exit_points=()))]) == []


def test_loss_weights_are_the_paper_s_beside_the_training_s_own() -> None:
    figure, _ = training_figures([logs(tuned=lite())])
    axes = drawn(figure).axes[0]
    paper, own = ([bar.get_height() for bar in bars] for bars in axes.containers)
    assert paper == pytest.approx(loss_weights((4, 6), 12, "green-code"))
    assert own == pytest.approx([1 / 3] * 3)
    (figure, _) = training_figures([logs(tuned=lite(weights_rule="green-code"))])
    assert len(drawn(figure).axes[0].containers) == 1
    (figure, _) = training_figures([logs(tuned=lite(weights_rule="layerskip"))])
    assert drawn(figure).axes[0].containers[1].get_label() == "this training (layerskip)"


def test_optimal_exits_are_shares_of_all_tokens() -> None:
    _, figure = training_figures([logs(agents=(agent("rl"),))])
    axes = drawn(figure).axes[0]
    optimal, taken = ([bar.get_height() for bar in bars] for bars in axes.containers)
    assert optimal == [75, 25]
    assert taken == [50, 50]
    assert "mean layer 6.0" in axes.get_legend().get_texts()[0].get_text()
    _, unfinished = training_figures([logs(agents=(agent("rl", optimal_exits={}),))])
    assert len(drawn(unfinished).axes[0].containers) == 1


@pytest.mark.slow
def test_every_figure_stays_on_paper_and_says_how_much_it_is_of() -> None:
    exits = tuple(range(4, 31, 2))
    steps = tuple(LiteStep(n, dict.fromkeys(exits, 3.0 - n / 100)) for n in range(1, 41))
    agents = (agent("rl"), agent("rl-" + "x" * 80), agent("rl-java", optimal_exits={}))
    weights, loss, reward, taken = training_figures(
        [logs(tuned=lite(steps=steps, exit_points=exits[:-1], num_layers=30), agents=agents)]
    )
    check_on_paper(weights, "")  # a rule, of nothing that was counted
    assert "n = 40 optimiser steps" in check_on_paper(loss)
    assert {"n = 87 episodes", "n = 2,900 decisions"} <= set(check_on_paper(reward))
    assert {"n = 40 tokens", "n = 2,900 decisions"} <= set(check_on_paper(taken))


def test_agents_that_a_figure_has_no_room_for_have_another() -> None:
    found = training_figures([logs(agents=tuple(agent(f"rl-{number}") for number in range(4)))])
    assert [figure.name for figure in found] == [
        "training-tiny-reward-1", "training-tiny-reward-2", "training-tiny-exits-1", "training-tiny-exits-2",
    ]  # fmt: skip
    shown = [axes.get_title("left") for figure in found[:2] for axes in drawn(figure).axes]
    assert [title for title in shown if title] == ["rl-0", "rl-1", "rl-2", "rl-3"]
    assert "rl-3" in found[1].caption
    assert "rl-3" not in found[0].caption


def test_a_smoothed_line_keeps_constants_and_slopes() -> None:
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    rising = [float(n) for n in range(200)]
    assert smoothed(rising)[:195] == pytest.approx(rising[:195]), "as many on either side"
    assert smoothed([1.0]) == [1.0]
