"""Learning against a known optimum; and a run that was stopped and resumed is the run that was not."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.contracts.recipes import Silent
from harness.errors import ResumeError, TrainingError
from harness.training.agents.episodes import Episodes
from harness.training.agents.exit_env import ExitVecEnv
from harness.training.agents.ppo import AgentCheckpoints, Learned, learn, policy_network
from harness.training.agents.reward import CONTINUE, EXIT, REWARDS
from harness.training.checkpoints import stop_on_interrupt
from harness.training.recipes import AgentSettings
from tests.training.tracing import episodes_of

POINTS, LAYERS = (4, 6, 10), 12
QUICK = AgentSettings(steps=6144, rollout=512, batch=128, learning_rate=1e-2, discount=0.9, hidden=(16, 16), envs=16)


def world(seed: int = 0, *, tokens: int = 800) -> Episodes:
    """Tokens whose state says exactly which exit is their first right one, among noise."""
    chance = torch.Generator().manual_seed(seed)
    best = torch.randint(len(POINTS) + 1, (tokens,), generator=chance)
    right = torch.arange(len(POINTS)) >= best.unsqueeze(1)
    states = 0.1 * torch.randn(tokens, len(POINTS), 8, generator=chance)
    states[torch.arange(tokens), :, best] += 1
    states[:, :, 4:7] += torch.eye(3)  # which exit this is
    return episodes_of(right, states, (tokens,), REWARDS["java"], 15)


class Trainer:
    """Learns in a folder, as often as it is told to."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "training.jsonl"
        self.folder = folder / "checkpoint"

    def checkpoints(self, **facts: Any) -> AgentCheckpoints:
        return AgentCheckpoints(self.folder, "agent", {"seed": 0, **facts})

    def __call__(
        self, settings: AgentSettings = QUICK, *, episodes: Episodes | None = None, resume: bool = False,
        stop: threading.Event | None = None, save_steps: int = 10**9, **facts: Any,
    ) -> Learned:  # fmt: skip
        env = ExitVecEnv(episodes or world(), settings.envs)
        return learn(
            env, settings, [*POINTS, LAYERS], seed=0, checkpoints=self.checkpoints(**facts), log=self.log,
            save_steps=save_steps, resume=resume, progress=Silent(), stop=stop or threading.Event(),
        )  # fmt: skip

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)


@pytest.fixture
def another(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path / "another")


def test_a_known_optimum_is_found(trainer: Trainer) -> None:
    """Of the best reward there is, the greedy policy earns more than 95 % on tokens it has never met."""
    learned = trainer()
    unseen = world(seed=1)
    logits = learned.policy(torch.from_numpy(unseen.observations)).numpy()
    earned = 0.0
    for token, rewards in enumerate(unseen.rewards):
        for place in range(len(POINTS)):
            action = EXIT if logits[token, place, EXIT] > logits[token, place, CONTINUE] else CONTINUE
            earned += float(rewards[place, action])
            if action == EXIT:
                break
    best = np.minimum(unseen.optimal + 1, len(POINTS)).sum()  # 1 for each right continuation, and for the exit
    assert earned > 0.95 * best
    *rollouts, counted = trainer.lines  # the log holds the figures of the paper
    assert [line["steps"] for line in rollouts] == list(range(512, 6145, 512))
    for line in rollouts:
        assert set(line["exits"]) == {"4", "6", "10", "12"}
        assert sum(line["exits"].values()) == pytest.approx(1, abs=1e-3)
        assert -1 <= line["reward_per_step"] <= 1
        assert line["episodes"] > 0
    counts = counted["optimal_exits"]
    assert set(counts) == {"4", "6", "10", "12"}
    assert min(counts.values()) > 0.15 * sum(counts.values())  # a quarter each
    first, last = rollouts[0], rollouts[-1]
    assert first["reward_per_step"] < 0.6
    assert last["reward_per_step"] > 0.9
    assert last["reward_per_episode"] > first["reward_per_episode"]


def test_the_exported_network_decides_as_the_policy_does(trainer: Trainer) -> None:
    from stable_baselines3 import PPO

    env = ExitVecEnv(world(), 4)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, policy_kwargs={"net_arch": [64, 64]}, device="cpu")
    model.learn(256)
    states = torch.from_numpy(world(seed=1).observations[:, 1])
    with torch.no_grad():
        expected = model.policy.get_distribution(states).distribution.probs
    exported = policy_network(model.policy)
    torch.testing.assert_close(exported(states).softmax(-1), expected, rtol=1e-5, atol=1e-6)
    deployed = exported.difference(EXIT, CONTINUE)(states).squeeze(-1).sigmoid()
    torch.testing.assert_close(deployed, expected[:, EXIT], rtol=1e-5, atol=1e-6)


def in_the_middle_of_a_rollout(monkeypatch: pytest.MonkeyPatch, stop: threading.Event) -> None:
    """Ask to stop at the 77th step of all."""
    step, calls = ExitVecEnv.step_wait, iter(range(77))

    def count(env: ExitVecEnv) -> Any:
        if next(calls, None) is None:
            stop.set()
        return step(env)

    monkeypatch.setattr(ExitVecEnv, "step_wait", count)


def test_resuming_equals_going_on(trainer: Trainer, another: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = QUICK.replace(steps=2048)
    whole = trainer(settings)
    stop = threading.Event()
    with monkeypatch.context() as patch:
        in_the_middle_of_a_rollout(patch, stop)
        stopped = another(settings, stop=stop)
    assert not stopped.finished
    assert stopped.steps == 1024
    with pytest.raises(TrainingError, match=r"of this very training, which was interrupted\. Add --resume"):
        another(settings)  # hours may lie there
    resumed = another(settings, resume=True)
    assert resumed.finished
    for (weight, bias), (weight_again, bias_again) in zip(whole.policy.layers, resumed.policy.layers, strict=True):
        assert torch.equal(weight, weight_again)
        assert torch.equal(bias, bias_again)
    assert another.lines == trainer.lines
    assert resumed.tally.optimal.tolist() == whole.tally.optimal.tolist()


def test_the_last_two_checkpoints_stay(trainer: Trainer) -> None:
    trainer(QUICK.replace(steps=1536), save_steps=512)
    assert sorted(path.name for path in trainer.folder.iterdir()) == [
        f"step-{steps:09d}.{kind}" for steps in (1024, 1536) for kind in ("json", "safetensors")
    ]
    trainer(QUICK.replace(steps=512))  # a new run: the old one's, which was finished, are not taken for its own
    assert [path.name for path in sorted(trainer.folder.glob("*.json"))] == ["step-000000512.json"]


def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(trainer: Trainer) -> None:
    trainer(QUICK.replace(steps=512))
    bad = world()
    bad.rewards[:] = np.nan
    with pytest.raises(TrainingError, match=r"no number after step 512; the last good checkpoint is .*000000512.json"):
        trainer(QUICK, episodes=bad, resume=True)
    assert trainer(QUICK.replace(steps=1024), resume=True).steps == 1024


def test_checkpoints_of_something_else_are_refused(trainer: Trainer) -> None:
    with pytest.raises(ResumeError, match=r"holds no checkpoint to resume from\. Omit --resume"):
        trainer(resume=True)
    trainer(QUICK.replace(steps=512), model_fingerprint="abc")
    with pytest.raises(ResumeError, match="was trained with model fingerprint abc, now it is xyz"):
        trainer(QUICK.replace(steps=1024), resume=True, model_fingerprint="xyz")


def test_ctrl_c_asks_once_and_then_insists() -> None:
    ask: Callable[[], None] = lambda: signal.raise_signal(signal.SIGINT)  # noqa: E731
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as stop:
        assert not stop.is_set()
        ask()
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            ask()
    assert signal.getsignal(signal.SIGINT) is before
