"""Supervised controllers: they learn what the state says, and what is written is what was trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.controllers import Observation
from harness.errors import TrainingError
from harness.training.heads.job import score_all
from harness.training.heads.learning import HeadRecipe, HeadTargets, train_heads
from harness.training.traces.replay import replay_rows
from harness.training.watch import Silent

POINTS, WIDTH, TOKENS = (2, 4, 6), 12, 3000


def world(seed: int = 0) -> tuple[Tensor, Tensor]:
    """States whose first coordinate says, exit by exit, whether the answer is there."""
    chance = torch.Generator().manual_seed(seed)
    states = torch.randn(TOKENS, len(POINTS), WIDTH, generator=chance)
    signs = torch.tensor([1.0, -1.0, 1.0])  # another direction at every exit
    return states, states[:, :, 0] * signs > 0


def targets(right: Tensor) -> HeadTargets:
    noise = torch.zeros(right.shape)
    return HeadTargets(right.float(), noise, noise)


@pytest.mark.parametrize("hidden", [0, 16])
def test_heads_of_their_own_learn_each_exit(hidden: int) -> None:
    states, right = world()
    recipe = HeadRecipe(hidden=hidden, epochs=40, learning_rate=2e-2, batch=256)
    networks = train_heads(states, Observation(), targets(right), POINTS, recipe, seed=0, watch=Silent())
    assert set(networks) == {"2", "4", "6"}
    unseen, truth = world(seed=1)
    scores = score_all(networks, Observation(), unseen, POINTS)
    assert ((scores > 0) == truth).float().mean() > 0.95


def test_one_head_for_all_needs_to_know_where_it_is() -> None:
    states, right = world()
    recipe = HeadRecipe(objective="certainty", shared=True, hidden=32, epochs=30, learning_rate=1e-2, batch=256)
    hits = {}
    for place in (False, True):
        observation = Observation(place=place)
        networks = train_heads(states, observation, targets(right), POINTS, recipe, seed=0, watch=Silent())
        assert set(networks) == {"shared"}
        unseen, truth = world(seed=1)
        hits[place] = ((score_all(networks, observation, unseen, POINTS) > 0.5) == truth).float().mean().item()
    assert hits[True] > 0.93
    assert hits[False] < 0.8  # the sign differs between exits


def test_standardisation_is_folded_into_the_first_map() -> None:
    """A state far from zero and of any size gives the same decisions: nothing but the network is kept."""
    states, right = world()
    recipe = HeadRecipe(hidden=8, epochs=10, learning_rate=1e-2, batch=256)
    plain = train_heads(states, Observation(), targets(right), POINTS, recipe, seed=0, watch=Silent())
    moved = train_heads(500 * states + 90, Observation(), targets(right), POINTS, recipe, seed=0, watch=Silent())
    unseen, _ = world(seed=1)
    a = score_all(plain, Observation(), unseen, POINTS)
    b = score_all(moved, Observation(), 500 * unseen + 90, POINTS)
    assert torch.allclose(a, b, atol=0.05)


def test_the_seed_decides() -> None:
    states, right = world()
    recipe = HeadRecipe(hidden=4, epochs=1)
    first, second, other = (
        train_heads(states, Observation(), targets(right), POINTS, recipe, seed=seed, watch=Silent())
        for seed in (0, 0, 1)
    )
    assert torch.equal(first["2"].layers[0][0], second["2"].layers[0][0])
    assert not torch.equal(first["2"].layers[0][0], other["2"].layers[0][0])


def test_a_loss_that_is_no_number_stops() -> None:
    states, right = world()
    states[5, 1, 3] = torch.inf
    with pytest.raises(TrainingError, match="nan"):
        train_heads(states, Observation(), targets(right), POINTS, HeadRecipe(epochs=1), seed=0, watch=Silent())


def test_targets_come_from_trace_columns() -> None:
    made = HeadTargets.of(
        top=torch.tensor([[3, 4], [5, 5]]),
        final=torch.tensor([4, 5]),
        top1=torch.tensor([[0.5, 0.9], [0.1, 1.0]]),
        entropy=torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    )
    assert made.right.tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert made.confidence.mean().abs() < 1e-6
    assert made.confidence[0, 1] > made.confidence[0, 0] > made.confidence[1, 0]
    assert made.entropy.std() == pytest.approx(1.0)


def test_confident_tokens_are_let_go_and_others_kept() -> None:
    states, right = world()
    recipe = HeadRecipe(hidden=0, epochs=15, learning_rate=1e-2, batch=256)
    networks = train_heads(states, Observation(), targets(right), POINTS, recipe, seed=0, watch=Silent())
    unseen, truth = world(seed=1)
    scores = score_all(networks, Observation(), unseen, POINTS).sigmoid()
    strict, loose = replay_rows(scores, truth, POINTS, 8, [0.99, 0.5])
    assert strict["agreement"] > loose["agreement"] > 0.9
    assert strict["exit_layer"] > loose["exit_layer"]
