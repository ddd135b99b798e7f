"""Many episodes at once are the same as each by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.training.agents.episodes import Episodes, TracedDocument
from harness.training.agents.exit_env import ExitVecEnv
from harness.training.agents.reward import EXIT, REWARDS, reward_table

POINTS, LAYERS, WIDTH, LENGTH = (4, 6, 10), 12, 8, 5


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    chance = torch.Generator().manual_seed(0)
    lengths, row, documents = (40, 90, 60), 0, []
    for number, length in enumerate(lengths):
        documents.append(TracedDocument(number, f"k{number}", "py150, x", row, length - 8, 8, length))
        row += length - 8
    right = torch.rand(row, len(POINTS), generator=chance) < torch.tensor([0.3, 0.5, 0.7])
    rewards, optimal = reward_table(right, POINTS, LAYERS, REWARDS["python"])
    observations = torch.randn(row, len(POINTS), WIDTH, generator=chance).numpy()
    return Episodes(
        observations, rewards.numpy(), right.numpy(), optimal.numpy(), tuple(documents), LENGTH,
        generated=False, exit_points=POINTS, num_layers=LAYERS,
    )  # fmt: skip


def test_every_step_is_that_of_an_episode_by_hand(episodes: Episodes) -> None:
    """Token by token, exit by exit: what is seen, earned and counted, and when an episode is over."""
    count, last = 6, len(POINTS)
    env = ExitVecEnv(episodes, count, seed=1)
    seen, chance = env.reset(), np.random.default_rng(0)
    rows, ends = env.state()["rows"], env.state()["ends"]
    assert set((ends - rows).tolist()) == {LENGTH}
    places, earned, exits, optimal, over = [0] * count, [0.0] * count, [0] * 4, [0] * 4, 0
    total = 0.0
    for _ in range(300):
        for env_, (row, place) in enumerate(zip(rows, places, strict=True)):
            assert seen[env_].tolist() == episodes.observations[row, place].tolist()
        actions = (chance.random(count) < 0.4).astype(np.int64)
        seen, rewards, done, infos = env.step(actions)
        for number, action in enumerate(actions.tolist()):
            row, place = rows[number], places[number]
            reward = episodes.rewards[row, place, action]
            assert rewards[number] == pytest.approx(reward)
            earned[number] += float(reward)
            if action != EXIT and place < last - 1:
                places[number] += 1
                assert not done[number]
                continue
            exits[place if action == EXIT else last] += 1
            optimal[episodes.optimal[row]] += 1
            places[number], rows[number] = 0, row + 1
            assert done[number] == (row + 1 == ends[number])
            if done[number]:
                assert infos[number]["terminal_observation"].tolist() == episodes.observations[row, place].tolist()
                over, total, earned[number] = over + 1, total + earned[number], 0.0
                rows[number], ends[number] = env.state()["rows"][number], env.state()["ends"][number]
    tally = env.take_tally()
    assert (tally.exits.tolist(), tally.optimal.tolist(), tally.episodes) == (exits, optimal, over)
    assert tally.reward == pytest.approx(total, rel=1e-5)
    assert env.take_tally().episodes == 0


def test_a_restored_state_goes_on_where_it_stood(episodes: Episodes) -> None:
    env = ExitVecEnv(episodes, 4, seed=1)
    env.reset()
    chance = np.random.default_rng(0)
    for _ in range(17):
        seen, *_ = env.step((chance.random(4) < 0.4).astype(np.int64))
    state = env.state()
    env.seed(5)
    plan = [(chance.random(4) < 0.4).astype(np.int64) for _ in range(30)]
    expected = [env.step(actions)[:3] for actions in plan]
    other = ExitVecEnv(episodes, 4, seed=99)
    other.restore(state)
    assert (other.reset() == seen).all()
    other.seed(5)
    for actions, found in zip(plan, expected, strict=True):
        assert all((again == before).all() for again, before in zip(other.step(actions), found, strict=False))
