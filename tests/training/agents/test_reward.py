"""Equations 2 and 3, worked out by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from harness.training.agents.reward import CONTINUE, EXIT, REWARDS, RewardCoefficients, SavingsReward, reward_table

POINTS, LAYERS = (4, 6, 10), 12  # the longest distance is 12 − 4 = 8
COEFFICIENTS = RewardCoefficients(alpha=0.2, beta=0.5, gamma=0.8, epsilon=0.1)

# right at each exit, best exit's place, rewards of continuing, rewards of exiting
BY_HAND = [
    ([False, True, False], 1, [1, -(10 - 6) * 0.8 / 8, -(12 - 6) * 0.8 / 8], [-(6 - 4) * 0.5 / 8, 1, -0.1]),
    ([True, True, True], 0, [-2 * 0.8 / 8, -6 * 0.8 / 8, -8 * 0.8 / 8], [1, -2 * 0.2 / 8, -6 * 0.2 / 8]),
    ([False, False, True], 2, [1, 1, -2 * 0.8 / 8], [-6 * 0.5 / 8, -4 * 0.5 / 8, 1]),
    ([False, False, False], 3, [1, 1, 1], [-8 * 0.5 / 8, -6 * 0.5 / 8, -2 * 0.5 / 8]),
]


@pytest.mark.parametrize(("right", "best", "go_on", "leave"), BY_HAND)
def test_values(right: list[bool], best: int, go_on: list[float], leave: list[float]) -> None:
    rewards, places = reward_table(torch.tensor([right]), POINTS, LAYERS, COEFFICIENTS)
    assert rewards.shape == (1, 3, 2)
    assert rewards.dtype == torch.float32
    assert places.tolist() == [best]
    torch.testing.assert_close(rewards[0, :, CONTINUE], torch.tensor(go_on, dtype=torch.float32))
    torch.testing.assert_close(rewards[0, :, EXIT], torch.tensor(leave, dtype=torch.float32))


@pytest.mark.parametrize("values", list(itertools.product((0.0, 0.3, 1.0), repeat=4)))
def test_rewards_are_one_and_penalties_lie_between_minus_one_and_zero(values: tuple[float, ...]) -> None:
    right = torch.tensor(list(itertools.product((False, True), repeat=3)))
    rewards, places = reward_table(right, POINTS, LAYERS, RewardCoefficients(*values))
    for token, best in enumerate(places.tolist()):
        for place, action in itertools.product(range(3), (CONTINUE, EXIT)):
            value = rewards[token, place, action].item()
            deserved = place < best if action == CONTINUE else place == best
            assert value == 1 if deserved else -1 <= value <= 0


def test_every_coefficient_counts() -> None:
    right = torch.tensor(list(itertools.product((False, True), repeat=3)))
    before, _ = reward_table(right, POINTS, LAYERS, COEFFICIENTS)
    for name in ("alpha", "beta", "gamma", "epsilon"):
        after, _ = reward_table(right, POINTS, LAYERS, replace(COEFFICIENTS, **{name: 1.0}))
        assert (before != after).any(), name


def test_presets_of_the_paper() -> None:
    assert REWARDS["java"] == RewardCoefficients(1, 1, 1, 0.1)
    assert REWARDS["python"] == RewardCoefficients(0.5, 0.5, 0.5, 0.1)
    assert all(each.alpha <= each.beta for each in REWARDS.values() if isinstance(each, RewardCoefficients))


def test_savings_pay_for_layers_not_run() -> None:
    right = torch.tensor([[False, True, False, True]])
    rewards, places = reward_table(right, (2, 4, 6, 8), 10, SavingsReward(penalty=3))
    assert rewards[0, :, CONTINUE].tolist() == [0, 0, 0, 0]
    assert rewards[0, :, EXIT].tolist() == [-3, 0.75, -3, 0.25]  # late and right is still right
    assert places.tolist() == [1]
