"""The environment keeps Gymnasium's contract, and many at once are the same as one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from harness.training.agents.episodes import Episodes, TracedDocument
from harness.training.agents.exit_env import ExitEnv, ExitVecEnv, Tally, Token
from harness.training.agents.reward import CONTINUE, EXIT, REWARDS, reward_table
from tests.training.agents.replayed import ReplayedTokens

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


def assert_same(one: Tally, other: Tally) -> None:
    assert one.exits.tolist() == other.exits.tolist()
    assert one.optimal.tolist() == other.optimal.tolist()
    assert one.episodes == other.episodes
    assert one.reward == pytest.approx(other.reward, rel=1e-5)


def test_gymnasium_s_contract(episodes: Episodes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an observation without bounds is meant
        check_env(ExitEnv(ReplayedTokens(episodes)), skip_render_check=True)


def test_one_episode_by_hand(episodes: Episodes) -> None:
    source = ReplayedTokens(episodes)
    env = ExitEnv(source)
    env.reset(seed=3)
    begin, end = (int(each[0]) for each in episodes.draw(np.random.default_rng(3), 1))
    assert end - begin == LENGTH
    for row in range(begin, end):
        last = row == end - 1
        for place in range(len(POINTS) - 1):
            seen, reward, over, _, _ = env.step(CONTINUE)
            assert reward == pytest.approx(episodes.rewards[row, place, CONTINUE])
            assert seen.tolist() == episodes.observations[row, place + 1].tolist()
            assert not over
        action = EXIT if row % 2 else CONTINUE  # either ends the token at the last exit point
        seen, reward, over, truncated, _ = env.step(action)
        assert reward == pytest.approx(episodes.rewards[row, -1, action])
        assert (over, truncated) == (last, False)
        following = (row, len(POINTS) - 1) if last else (row + 1, 0)
        assert seen.tolist() == episodes.observations[following].tolist()
    tally = env.take_tally()
    at_the_end = sum(row % 2 == 0 for row in range(begin, end))  # they count as exited at the last layer
    assert tally.exits.tolist() == [0, 0, LENGTH - at_the_end, at_the_end]
    assert tally.optimal.tolist() == np.bincount(episodes.optimal[begin:end], minlength=4).tolist()
    assert tally.episodes == 1
    assert env.take_tally().episodes == 0


def test_vectorised_with_one_episode_is_the_single_environment(episodes: Episodes) -> None:
    many, one = ExitVecEnv(episodes, 1, seed=7), ExitEnv(ReplayedTokens(episodes))
    seen, (alone, _) = many.reset(), one.reset(seed=7)
    chance = np.random.default_rng(0)
    for _ in range(400):
        assert seen[0].tolist() == alone.tolist()
        action = int(chance.random() < 0.4)
        seen, rewards, done, infos = many.step(np.array([action]))
        alone, reward, over, _, _ = one.step(action)
        assert rewards[0] == pytest.approx(reward)
        assert done[0] == over
        if over:
            assert infos[0]["terminal_observation"].tolist() == alone.tolist()
            alone, _ = one.reset()
    assert_same(many.take_tally(), one.take_tally())


def test_vectorised_is_as_many_single_environments(episodes: Episodes) -> None:
    count = 6
    many = ExitVecEnv(episodes, count, seed=1)
    many.reset()
    sources = [Chosen(episodes) for _ in range(count)]
    singles = [ExitEnv(source) for source in sources]
    chance = np.random.default_rng(0)
    follow(many, singles, sources, range(count))
    for _ in range(300):
        actions = (chance.random(count) < 0.4).astype(np.int64)
        seen, rewards, done, infos = many.step(actions)
        for place, (env, action) in enumerate(zip(singles, actions.tolist(), strict=True)):
            alone, reward, over, _, _ = env.step(action)
            assert rewards[place] == pytest.approx(reward)
            assert done[place] == over
            shown = infos[place]["terminal_observation"] if over else seen[place]
            assert shown.tolist() == alone.tolist()
        follow(many, singles, sources, done.nonzero()[0])
    total = Tally.empty(len(POINTS))
    for env in singles:
        total.add(env.take_tally())
    assert_same(many.take_tally(), total)


class Chosen(ReplayedTokens):
    """Begins the episode it is told to."""

    following = (0, 1)

    def begin(self, generator: np.random.Generator) -> Token:
        return self.at(*self.following)


def follow(many: ExitVecEnv, singles: list[ExitEnv], sources: list[Chosen], which: Iterable[int]) -> None:
    """Let single environments begin the episodes that the vectorised one has drawn."""
    state = many.state()
    for place in which:
        sources[place].following = (int(state["rows"][place]), int(state["ends"][place]))
        singles[place].reset()


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
    for actions, (observations, rewards, done) in zip(plan, expected, strict=True):
        again = other.step(actions)
        assert (again[0] == observations).all()
        assert (again[1] == rewards).all()
        assert (again[2] == done).all()
