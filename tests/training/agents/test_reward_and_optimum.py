"""Rewards by hand, and the optimum of one: by hand, against every policy there is, and as the command compares it."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.training.agents.episodes import Episodes
from harness.training.agents.optimum import (
    beside_optimum,
    cross_fitted_advantages,
    fit_optimum,
    render_optimum,
    returns,
)
from harness.training.agents.reward import (
    CONTINUE,
    EXIT,
    REWARDS,
    Reward,
    RewardCoefficients,
    SavingsReward,
    describe,
    reward_table,
)
from harness.training.recipes import AgentSettings
from tests.training.tracing import episodes_of

POINTS, LAYERS = (4, 6, 10), 12  # the longest distance is 12 − 4 = 8
COEFFICIENTS = RewardCoefficients(alpha=0.2, beta=0.5, gamma=0.8, epsilon=0.1)

# right at each exit, best exit's place, rewards of continuing, rewards of exiting
BY_HAND = [
    ([False, True, False], 1, [1, -(10 - 6) * 0.8 / 8, -(12 - 6) * 0.8 / 8], [-(6 - 4) * 0.5 / 8, 1, -0.1]),
    ([True, True, True], 0, [-2 * 0.8 / 8, -6 * 0.8 / 8, -8 * 0.8 / 8], [1, -2 * 0.2 / 8, -6 * 0.2 / 8]),
    ([False, False, True], 2, [1, 1, -2 * 0.8 / 8], [-6 * 0.5 / 8, -4 * 0.5 / 8, 1]),
    ([False, False, False], 3, [1, 1, 1], [-8 * 0.5 / 8, -6 * 0.5 / 8, -2 * 0.5 / 8]),
]


def test_values() -> None:
    right, best, go_on, leave = zip(*BY_HAND, strict=True)
    rewards, places = reward_table(torch.tensor(right), POINTS, LAYERS, COEFFICIENTS)
    assert rewards.dtype == torch.float32
    assert places.tolist() == list(best)
    torch.testing.assert_close(rewards[:, :, CONTINUE], torch.tensor(go_on, dtype=torch.float32))
    torch.testing.assert_close(rewards[:, :, EXIT], torch.tensor(leave, dtype=torch.float32))


def test_presets_of_the_paper() -> None:
    assert REWARDS["java"] == RewardCoefficients(1, 1, 1, 0.1)
    assert REWARDS["python"] == RewardCoefficients(0.5, 0.5, 0.5, 0.1)
    table = AgentSettings()  # III
    assert (table.steps, table.rollout, table.batch, table.epochs) == (500_000, 4096, 512, 6)
    assert (table.learning_rate, table.discount, table.hidden) == (5e-5, 0.99, (64, 64))


def test_savings_pay_for_layers_not_run() -> None:
    right = torch.tensor([[False, True, False, True]])
    rewards, places = reward_table(right, (2, 4, 6, 8), 10, SavingsReward(penalty=3))
    assert rewards[0, :, CONTINUE].tolist() == [0, 0, 0, 0]
    assert rewards[0, :, EXIT].tolist() == [-3, 0.75, -3, 0.25]  # late and right is still right
    assert places.tolist() == [1]


Floats = NDArray[np.float64]
ALL_REWARDS = pytest.mark.parametrize("reward", REWARDS.values(), ids=list(REWARDS))


def rewards_of(right: list[list[int]], points: tuple[int, ...], layers: int, reward: Reward) -> Floats:
    return reward_table(torch.tensor(right, dtype=torch.bool), points, layers, reward)[0].double().numpy()


def places_of(leaves: NDArray[np.bool_]) -> NDArray[np.int64]:
    always = np.concatenate((leaves, np.ones((len(leaves), 1), dtype=bool)), axis=1)
    return always.argmax(1)


def test_the_paper_s_reward_by_hand() -> None:
    """Exits at 4 and 6 of 8 layers; three tokens right at both, one at 6 only, one at neither; nothing to tell them by.

    At 6, leaving earns (3 · −1/2 + 1 − 1/2) / 5 = −0.2, running on (3 · −1 − 1/2 + 1) / 5 = −0.5: leave. At 4, leaving
    earns (3 − 1/2 − 1) / 5 = 0.3, running on (3 · −1/2 + 1 + 1) / 5 − 0.2 = −0.1.
    """
    rewards = rewards_of([[1, 1]] * 3 + [[0, 1], [0, 0]], (4, 6), 8, RewardCoefficients(1, 1, 1))
    scores = np.zeros((5, 2))
    advantages = fit_optimum(scores, rewards, bins=2, prior=0)(scores)
    assert advantages == pytest.approx(np.tile([0.4, 0.3], (5, 1)))


@ALL_REWARDS
def test_no_policy_of_the_same_state_earns_more(reward: Reward) -> None:
    """Two exits and two bins: all 64 policies on (exit, bin, bin before)."""
    chance = np.random.default_rng(0)
    bins = chance.integers(0, 2, (60, 2))
    right = (chance.random((60, 2)) < np.where(bins == 1, 0.8, 0.4)).astype(int).tolist()
    rewards = rewards_of(right, (4, 6), 12, reward)
    scores = bins + chance.random((60, 2)) * 0.1
    scores[np.argsort(scores, axis=0)[:30], [0, 1]] -= 10  # the lower half is the lower bin
    low_high = (scores > 0).astype(int)
    found = returns(rewards, places_of(fit_optimum(scores, rewards, bins=2, prior=0)(scores) >= 0)).mean()
    earned = []
    for first in itertools.product((False, True), repeat=2):
        for second in itertools.product((False, True), repeat=4):
            leaves = np.stack(
                (np.array(first)[low_high[:, 0]], np.array(second)[low_high[:, 1] * 2 + low_high[:, 0]]), axis=1
            )
            earned.append(returns(rewards, places_of(leaves)).mean())
    assert found == pytest.approx(max(earned))


@ALL_REWARDS
def test_labels_that_are_chance_give_nothing_out_of_sample(reward: Reward) -> None:
    """Fitted in sample the same scores seem to tell right from wrong; cross-fitted they earn what a constant earns."""
    chance = np.random.default_rng(0)
    documents = np.repeat(np.arange(30), 20)
    right = (chance.random((600, 3)) < 0.5).astype(int).tolist()
    scores = chance.random((600, 3))
    rewards = rewards_of(right, (4, 6, 10), 12, reward)
    constant = max(returns(rewards, np.full(600, place)).mean() for place in range(4))
    out = returns(rewards, places_of(cross_fitted_advantages(scores, rewards, documents) >= 0)).mean()
    within = returns(rewards, places_of(fit_optimum(scores, rewards, prior=0)(scores) >= 0)).mean()
    assert out < constant + 0.03
    assert within > constant + 0.1


def test_a_document_is_judged_by_others_alone() -> None:
    """Labels of one document, turned round, change nothing of its own decisions."""
    chance = np.random.default_rng(1)
    documents = np.repeat(np.arange(6), 50)
    right = chance.random((300, 2)) < 0.5
    scores = chance.random((300, 2))
    turned = right.copy()
    turned[:50] = ~turned[:50]
    before, after = (
        cross_fitted_advantages(
            scores, rewards_of(each.astype(int).tolist(), (4, 6), 12, REWARDS["python"]), documents, folds=6
        )
        for each in (right, turned)
    )
    assert np.array_equal(before[:50], after[:50])
    assert not np.array_equal(before[50:], after[50:])


def test_returns_add_up_the_way_there() -> None:
    chance = np.random.default_rng(3)
    rewards, places = chance.normal(size=(20, 4, 2)), chance.integers(0, 5, 20)
    for row, place, found in zip(rewards, places, returns(rewards, places), strict=True):
        assert found == pytest.approx(row[:place, CONTINUE].sum() + (row[place, EXIT] if place < 4 else 0))


def traced(reward: Reward, documents: int = 20, each: int = 100) -> tuple[Episodes, Tensor]:
    """Tokens whose probability tells how likely each exit is right."""
    chance = torch.Generator().manual_seed(0)
    probability = torch.rand(documents * each, len(POINTS), generator=chance).double()
    right = torch.rand(probability.shape, generator=chance) < probability
    nothing = torch.zeros(len(right), len(POINTS), 1)
    return episodes_of(right, nothing, [each] * documents, reward, 5), probability


def test_an_agent_at_the_optimum_is_at_no_distance_and_a_worse_one_is_below() -> None:
    known, probability = traced(REWARDS["savings"])
    gaps = []
    for agent in (probability - 0.8, torch.full_like(probability, -1.0)):
        found = beside_optimum(known, known, probability, agent, keep=0.95, seed=0)
        value, interval = found["distance"]["reward"]
        assert interval[0] < value < interval[1]
        gaps.append(value)
    assert gaps[0] == pytest.approx(0, abs=0.03)  # 0.8 is where one layer saved is worth the risk of −4
    assert gaps[1] < -0.03  # it never exits and earns nothing
    text = render_optimum(found, describe(REWARDS["savings"]))
    assert re.search(r"^Distance of the agent to the optimum of its reward: -\d\.\d{3} .* reward a token", text, re.M)
    assert "Reward: savings (penalty 4)." in text


def test_the_constrained_optimum_keeps_the_agreement_and_earns_no_less_than_a_threshold() -> None:
    """Eq. 2 and 3 prefer wrong exits; under their optimum, held to the agreement, a plain threshold earns more."""
    known, probability = traced(REWARDS["java"], 30, 200)
    found = beside_optimum(known, known, probability, probability - 0.5, keep=0.95, seed=0)
    rows = {row["policy"]: row for row in found["rows"] if row["kept"]}
    asis = next(row for row in found["rows"] if not row["kept"])
    assert asis["agreement"][0] < 0.9
    assert asis["reward"][0] > max(row["reward"][0] for row in rows.values())
    assert {row["agreement"][0] >= 0.95 for row in rows.values()} == {True}
    best = rows["constrained optimum"]["reward"][0]
    assert best > rows["optimum"]["reward"][0]
    assert best > rows["probability"]["reward"][0] - 0.02


def test_of_an_agent_only_documents_it_has_not_learned_from_count() -> None:
    known, probability = traced(REWARDS["savings"], 6)
    known.right[:] = False
    held_out = replace(known, documents=known.documents[1:3])
    always = torch.full((200, len(POINTS)), 1.0)
    found = beside_optimum(known, held_out, probability, always, keep=0.95, seed=0)
    assert (found["tokens"], found["documents"]) == (200, 2)
    assert found["distance"]["exit_layer"] is None
    assert "one of them cannot hold 95%." in render_optimum(found, describe(REWARDS["savings"]))
