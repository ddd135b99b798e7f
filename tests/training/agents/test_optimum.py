"""Backward induction: by hand, against every policy there is, and out of sample."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from harness.training.agents.optimum import cross_fitted_advantages, fit_optimum, returns
from harness.training.agents.reward import (
    CONTINUE,
    EXIT,
    REWARDS,
    Reward,
    RewardCoefficients,
    SavingsReward,
    reward_table,
)

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


def test_savings_by_hand() -> None:
    """One exit, half the way: a stop earns 1 where it is right and costs 4 where it is wrong."""
    right, scores = [[0], [0], [0], [1], [1], [1]], np.array([[0.1], [0.2], [0.3], [0.7], [0.8], [0.9]])
    rewards = rewards_of(right, (4,), 8, SavingsReward())
    advantages = fit_optimum(scores, rewards, bins=2, prior=0)(scores)
    assert advantages.ravel() == pytest.approx([-4, -4, -4, 1, 1, 1])
    assert returns(rewards, places_of(advantages >= 0)).mean() == pytest.approx(0.5)


@ALL_REWARDS
@pytest.mark.parametrize("seed", range(5))
def test_no_policy_of_the_same_state_earns_more(reward: Reward, seed: int) -> None:
    """Two exits and two bins: all 64 policies on (exit, bin, bin before)."""
    chance = np.random.default_rng(seed)
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


def test_scores_that_tell_are_used() -> None:
    chance = np.random.default_rng(2)
    scores = chance.random((2_000, 3))
    right = (chance.random((2_000, 3)) < scores).astype(int).tolist()
    rewards = rewards_of(right, (4, 6, 10), 12, REWARDS["savings"])
    documents = np.repeat(np.arange(20), 100)
    found = returns(rewards, places_of(cross_fitted_advantages(scores, rewards, documents) >= 0)).mean()
    assert found == pytest.approx(0.139, abs=0.03)  # by integrals over [0, 1]; a constant policy earns 0 at most


def test_returns_add_up_the_way_there() -> None:
    chance = np.random.default_rng(3)
    rewards, places = chance.normal(size=(20, 4, 2)), chance.integers(0, 5, 20)
    for row, place, found in zip(rewards, places, returns(rewards, places), strict=True):
        assert found == pytest.approx(row[:place, CONTINUE].sum() + (row[place, EXIT] if place < 4 else 0))
