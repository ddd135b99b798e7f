"""Supervised controllers: they learn what the state says, and what is written is what was trained."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts.recipes import Silent
from harness.errors import TrainingError
from harness.models.controllers import Network, Observation
from harness.training.heads import learning
from harness.training.heads.learning import HeadCheckpoints, HeadTargets, train_heads
from harness.training.options import HeadRecipe
from harness.training.traces.training_set import replay_rows, score_all

POINTS, WIDTH, TOKENS = (2, 4, 6), 12, 3000
STEPS, EPOCH = 12, 4
RECIPES = {
    "classifier": HeadRecipe(hidden=5, epochs=3, batch=800, learning_rate=1e-2),
    "lte": HeadRecipe(objective="certainty", shared=True, hidden=5, epochs=3, batch=800, learning_rate=1e-2),
}


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
    networks = train_heads(states, Observation(), targets(right), POINTS, recipe, seed=0, progress=Silent())
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
        networks = train_heads(states, observation, targets(right), POINTS, recipe, seed=0, progress=Silent())
        assert set(networks) == {"shared"}
        unseen, truth = world(seed=1)
        hits[place] = ((score_all(networks, observation, unseen, POINTS) > 0.5) == truth).float().mean().item()
    assert hits[True] > 0.93
    assert hits[False] < 0.8  # the sign differs between exits


def test_standardisation_is_folded_into_the_first_map() -> None:
    """A state far from zero and of any size gives the same decisions: nothing but the network is kept."""
    states, right = world()
    recipe = HeadRecipe(hidden=8, epochs=10, learning_rate=1e-2, batch=256)
    plain = train_heads(states, Observation(), targets(right), POINTS, recipe, seed=0, progress=Silent())
    moved = train_heads(500 * states + 90, Observation(), targets(right), POINTS, recipe, seed=0, progress=Silent())
    unseen, _ = world(seed=1)
    a = score_all(plain, Observation(), unseen, POINTS)
    b = score_all(moved, Observation(), 500 * unseen + 90, POINTS)
    assert torch.allclose(a, b, atol=0.05)


def test_the_seed_decides() -> None:
    states, right = world()
    recipe = HeadRecipe(hidden=4, epochs=1)
    first, second, other = (
        train_heads(states, Observation(), targets(right), POINTS, recipe, seed=seed, progress=Silent())
        for seed in (0, 0, 1)
    )
    assert torch.equal(first["2"].layers[0][0], second["2"].layers[0][0])
    assert not torch.equal(first["2"].layers[0][0], other["2"].layers[0][0])


def test_a_loss_that_is_no_number_stops() -> None:
    states, right = world()
    states[5, 1, 3] = torch.inf
    with pytest.raises(TrainingError, match="nan"):
        train_heads(states, Observation(), targets(right), POINTS, HeadRecipe(epochs=1), seed=0, progress=Silent())


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
    networks = train_heads(states, Observation(), targets(right), POINTS, recipe, seed=0, progress=Silent())
    unseen, truth = world(seed=1)
    scores = score_all(networks, Observation(), unseen, POINTS).sigmoid()
    strict, loose = replay_rows(scores, truth, POINTS, 8, [0.99, 0.5])
    assert strict["agreement"] > loose["agreement"] > 0.9
    assert strict["exit_layer"] > loose["exit_layer"]


# ------------------------------------------------------------------------------------------- checkpoints


class Stops(Silent):
    """Remembers the steps, and asks to stop, or dies, after one of them."""

    def __init__(self, at: int = 0, error: type[BaseException] | None = None) -> None:
        self.at, self.error, self.stop = at, error, threading.Event()
        self.begun: tuple[int, int] | None = None
        self.steps: list[int] = []

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self.begun = (total, done)

    def step(self, done: int, note: str = "") -> None:
        self.steps.append(done)
        if done == self.at and self.error:
            raise self.error
        if done == self.at:
            self.stop.set()


def train(folder: Path, kind: str = "classifier", progress: Stops | None = None, **settings: Any) -> Any:
    states, right = world()
    progress = progress or Stops()
    return train_heads(
        states, Observation(), targets(right), POINTS, RECIPES[kind], seed=3, progress=progress,
        checkpoints=HeadCheckpoints(folder, "heads", {"seed": 3}), stop=progress.stop, **settings,
    )  # fmt: skip


def assert_same(ours: Mapping[str, Network], theirs: Mapping[str, Network]) -> None:
    assert list(ours) == list(theirs)
    for name, network in ours.items():
        for pair, other in zip(network.layers, theirs[name].layers, strict=True):
            assert all(map(torch.equal, pair, other))


@pytest.mark.parametrize("kind", RECIPES)
def test_stopped_and_resumed_is_as_if_nothing_had_been(tmp_path: Path, kind: str) -> None:
    """Wherever it stops: in an epoch, at the end of one, while the learning rate rises, while it falls."""
    whole = train(tmp_path / "whole", kind)
    for at in (1, 3, EPOCH, EPOCH + 1, 2 * EPOCH, STEPS - 1):
        folder = tmp_path / str(at)
        assert train(folder, kind, Stops(at)) is None
        torch.manual_seed(99)  # chance of others is not chance of theirs
        progress = Stops()
        resumed = train(folder, kind, progress, resume=True)
        assert progress.begun == (STEPS, at)
        assert progress.steps == list(range(at + 1, STEPS + 1))
        assert_same(resumed, whole)


def test_stopped_again_and_again(tmp_path: Path) -> None:
    assert train(tmp_path / "parts", progress=Stops(1)) is None
    for at in range(2, STEPS):
        assert train(tmp_path / "parts", progress=Stops(at), resume=True) is None
    assert_same(train(tmp_path / "parts", resume=True), train(tmp_path / "whole"))


def test_a_kill_costs_what_came_after_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 12))  # a step takes twelve seconds
    monkeypatch.setattr(learning.time, "monotonic", lambda: next(clock))
    with pytest.raises(MemoryError):
        train(tmp_path / "parts", progress=Stops(8, MemoryError))
    last, before = sorted(path.stem for path in (tmp_path / "parts").glob("*.json"))[::-1]
    monkeypatch.undo()
    assert learning.SAVE_SECONDS <= 60
    progress = Stops()
    resumed = train(tmp_path / "parts", progress=progress, resume=True)
    assert progress.steps[0] == int(last.rpartition("-")[2]) + 1
    assert int(before.rpartition("-")[2]) < int(last.rpartition("-")[2]) < 8
    assert_same(resumed, train(tmp_path / "whole"))


def test_two_checkpoints_stay_and_none_is_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "SAVE_SECONDS", 0)
    train(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:09d}.{ending}" for step in (STEPS - 1, STEPS) for ending in ("json", "safetensors")
    ]


def test_resuming_what_has_ended_gives_it_again(tmp_path: Path) -> None:
    whole, progress = train(tmp_path), Stops()
    assert_same(train(tmp_path, progress=progress, resume=True), whole)
    assert progress.steps == []


def test_a_new_training_replaces_the_checkpoints_of_an_old_one(tmp_path: Path) -> None:
    train(tmp_path, progress=Stops(9))
    train(tmp_path, progress=Stops(2))
    assert [path.stem for path in tmp_path.glob("*.json")] == ["step-000000002"]


def test_weights_that_are_no_numbers_are_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "SAVE_SECONDS", 0)
    step = torch.optim.AdamW.step

    def blow_up(self: torch.optim.AdamW) -> None:
        step(self)
        self.param_groups[0]["params"][0].data.fill_(torch.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", blow_up)
    with pytest.raises(TrainingError, match="left weights that are no numbers"):
        train(tmp_path / "c")
    assert not (tmp_path / "c").exists()
