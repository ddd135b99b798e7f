"""Rewards by hand, and the optimum of one: by hand, against every policy there is, and as the command compares it."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.contracts.recipes import Silent
from harness.training.agents.episodes import Episodes
from harness.training.agents.optimum import (
    beside_optimum,
    chances,
    cross_fitted_places,
    fit_optimum,
    folds_of,
    hindsight,
    mixture,
    readings,
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
    earns (3 − 1/2 − 1) / 5 = 0.3, running on (3 · −1/2 + 1 + 1) / 5 − 0.2 = −0.1. Where three more are right nowhere,
    running on earns 3 · 2 more, leaving 3 · −1 and −1/2 less.
    """
    right = [[1, 1]] * 3 + [[0, 1], [0, 0]]
    for more, least in (([], [0, 0]), ([[0, 0]] * 3, [np.inf, np.inf])):
        rewards = rewards_of(right + more, (4, 6), 8, RewardCoefficients(1, 1, 1))
        assert fit_optimum(np.zeros((len(rewards), 2)), rewards).tolist() == least


def test_waiting_is_worth_what_comes_later() -> None:
    """Exits at 4 and 6 of 8 layers save 1 and 1/2; half the tokens are right at 4, all at 6; a wrong exit costs 1/4.

    At 4, leaving earns 1/2 − 1/8 = 0.375, which a bandit takes; going on earns 0.5, which the optimum does.
    """
    rewards = rewards_of([[1, 1], [0, 1]] * 2, (4, 6), 8, SavingsReward(0.25))
    assert rewards[:, 0, EXIT].mean() == pytest.approx(0.375)
    assert fit_optimum(np.zeros((4, 2)), rewards).tolist() == [np.inf, 0]
    assert fit_optimum(np.zeros((4, 2)), rewards, discount=0).tolist() == [0, 0]
    told = np.array([[0.9, 0.5], [0.2, 0.5]] * 2)
    assert fit_optimum(told, rewards).tolist() == [0.9, 0.5]


@ALL_REWARDS
def test_no_policy_of_the_same_state_earns_more(reward: Reward) -> None:
    """Two exits, and a score of three values that is all there is to know: all 16 pairs of thresholds."""
    chance = np.random.default_rng(0)
    scores = np.repeat(np.array([[x, y] for x in range(3) for y in range(3)]), 64, axis=0)
    right = np.stack([chance.random(len(scores)) < 0.1 + 0.4 * column for column in scores.T], axis=1).astype(int)
    rewards = rewards_of(right.tolist(), (4, 6), 12, reward)
    found = returns(rewards, places_of(scores >= fit_optimum(scores.astype(float), rewards))).mean()
    pairs = itertools.product((0, 1, 2, 3), repeat=2)
    assert found == pytest.approx(max(returns(rewards, places_of(scores >= pair)).mean() for pair in pairs), abs=1e-3)


def test_a_document_is_judged_by_others_alone() -> None:
    """Labels of one fold, turned round, change nothing of its own decisions, neither the heads' nor the table's."""
    chance = torch.Generator().manual_seed(1)
    right = torch.rand(120, 3, generator=chance) < 0.5
    seen = torch.randn(120, 3, 4, generator=chance)
    fold = folds_of(np.repeat(np.arange(6), 20), 0)
    inside = fold == fold[0]
    assert inside.sum() in (20, 40)
    turned = right ^ torch.from_numpy(inside).unsqueeze(1)
    found = []
    for labels in (right, turned):
        episodes = episodes_of(labels, seen, [20] * 6, REWARDS["python"], 5)
        chances_ = chances(seen, labels, fold, 0, Silent())
        places = cross_fitted_places(seen[..., 0].double().numpy(), episodes.rewards.astype(float), fold)
        found.append((chances_.numpy(), places))
    for before, after in zip(*found, strict=True):
        assert np.array_equal(before[inside], after[inside])
        assert not np.array_equal(before[~inside], after[~inside])


def test_hindsight_by_hand() -> None:
    """First right exits at 4, 6, 10 and 12: of four tokens one may be wrong, which is the one that ran all layers."""
    right = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=bool)
    layers = np.array([*POINTS, LAYERS])
    assert layers[hindsight(right, layers, 1.0)].tolist() == [4, 6, 10, 12]
    assert layers[hindsight(right, layers, 0.75)].tolist() == [4, 6, 10, 4]
    assert layers[hindsight(right, layers, 0.5)].tolist() == [4, 6, 4, 4]


def test_a_mixture_keeps_what_is_wanted() -> None:
    policies = [{"agreement": np.array([4.0, 2.0]), "exit_layer": np.array([20.0, 10.0])}]
    policies += [{"agreement": np.array([5.0, 5.0]), "exit_layer": np.array([40.0, 50.0])}]
    mixed = mixture(policies, 9.0)
    assert mixed is not None
    assert (mixed["agreement"].sum(), mixed["exit_layer"].sum()) == (9, 75)
    assert mixture(policies, 6.0) is policies[0]
    assert mixture(policies, 11.0) is None


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
    return episodes_of(right, torch.zeros(len(right), len(POINTS), 1), [each] * documents, reward, 5), probability


def beside(known: Episodes, probability: Tensor, agent: Tensor, held_out: Episodes | None = None) -> dict[str, Any]:
    said = readings(torch.zeros(probability.shape), probability, torch.zeros(probability.shape))
    return beside_optimum(known, held_out or known, said, agent, keep=0.97, seed=0, progress=Silent())


def test_readings_look_back_and_never_ahead() -> None:
    top1 = torch.tensor([[0.5, 0.9, 0.25]])
    said = readings(torch.tensor([[7, 7, 8]]), top1, torch.tensor([[1.0, 2.0, 3.0]]))
    logit = torch.logit(top1)[0].tolist()
    expected = [[0, 1, 0, -10, -10], [logit[1], 2, 1, 0, 0], [logit[2], 3, 0, logit[1], logit[1]]]
    torch.testing.assert_close(said[0], torch.tensor(expected), rtol=0, atol=1e-5)


BEST = torch.tensor([0.813, 0.844, 0.941])
"""Least chances of chances drawn from [0, 1], with the savings reward of −4: exits save 1, 3/4 and 1/4. At the last one
p/4 − 4 (1 − p) ≥ 0 from 0.941 on, worth 0.007; before it 3p/4 − 4 (1 − p) ≥ 0.007 from 0.844 on, worth 0.066 in all;
at the first p − 4 (1 − p) ≥ 0.066 from 0.813 on."""


def test_the_optimum_of_independent_chances_is_that_by_hand() -> None:
    known, probability = traced(REWARDS["savings"], 200, 250)
    assert fit_optimum(probability.numpy(), known.rewards.astype(float)) == pytest.approx(BEST.numpy(), abs=0.03)


def test_an_agent_at_the_optimum_is_at_no_distance_and_a_worse_one_is_below() -> None:
    known, probability = traced(REWARDS["savings"])
    gaps = []
    for agent in (probability - BEST, torch.full_like(probability, -1.0)):
        found = beside(known, probability, agent)
        value, interval = found["distance"]["reward"]
        assert interval[0] < value < interval[1]
        gaps.append(value)
    assert gaps[0] == pytest.approx(0, abs=0.03)
    assert gaps[1] < -0.03  # it never exits and earns nothing
    text = render_optimum(found, describe(REWARDS["savings"]))
    assert re.search(r"^Distance of the agent to the optimum: −\d\.\d{3} .* reward a token", text, re.M)
    assert "| mean exit layer (replayed) at | 90% | 95% | 97% | 98% | 99% |" in text
    assert "Reward: savings (penalty 4)." in text


def test_at_a_share_kept_hindsight_is_a_bound_and_the_optimum_no_worse_than_a_threshold() -> None:
    """Of the agent the last exits take what they can get; the optimum asks more of them, where less is saved."""
    known, probability = traced(REWARDS["java"], 60)
    found = beside(known, probability, probability.pow(torch.tensor([4.0, 1.0, 0.25])))
    rows = {(row["policy"], row["keep"]): row for row in found["rows"]}
    for keep in (0.9, 0.95, 0.98):
        layers = {name: row["exit_layer"][0] for (name, share), row in rows.items() if share == keep}
        assert all(row["agreement"][0] >= keep - 1e-9 for (_, share), row in rows.items() if share == keep)
        assert layers["hindsight"] < layers["optimum"] < layers["threshold on the probability"] + 0.2
        assert layers["agent"] > layers["optimum"] + 0.2
    known = {name: row["reward"][0] for (name, share), row in rows.items() if share and name != "hindsight"}
    assert rows["optimum", None]["reward"][0] > max(known.values())


def test_of_an_agent_only_documents_it_has_not_learned_from_count() -> None:
    known, probability = traced(REWARDS["savings"], 6)
    known.right[:] = False
    held_out = replace(known, documents=known.documents[1:3])
    found = beside(known, probability[:600], torch.full((200, len(POINTS)), 1.0), held_out)
    assert (found["tokens"], found["documents"]) == (200, 2)
    assert found["distance"]["exit_layer"] == {}
    assert "one of them cannot hold 97%." in render_optimum(found, describe(REWARDS["savings"]))
