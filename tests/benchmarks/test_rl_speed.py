"""How fast an agent learns on a trace, and what one decision of it costs.

Random observations as wide as SmolLM2-135M's, nine exit points, two threads; the learning loop is PPO's whole one, at
the paper's settings. Figures are printed beside their targets and fail where the fastest round is twice as bad: a
shared machine halves a speed without any reason. Run with ``make bench``.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.contracts import Batch, ModelInfo
from harness.contracts.recipes import Silent
from harness.models.controllers import Network, write_controller
from harness.training.agents.episodes import Episodes, TracedDocument
from harness.training.agents.exit_env import ExitVecEnv
from harness.training.agents.ppo import AgentCheckpoints, learn
from harness.training.agents.reward import REWARDS, reward_table
from harness.training.agents.train_agent import AGENT_OBSERVATIONS
from harness.training.recipes import AgentSettings
from strategies.rl import ReinforcementLearning

POINTS, LAYERS, HIDDEN = (4, 6, 8, 10, 12, 14, 18, 22, 26), 30, 576
DOCUMENTS, TOKENS = 50, 600


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    chance = torch.Generator().manual_seed(0)
    total = DOCUMENTS * TOKENS
    right = torch.rand(total, len(POINTS), generator=chance) < 0.4
    rewards, optimal = reward_table(right, POINTS, LAYERS, REWARDS["python"])
    documents = tuple(
        TracedDocument(number, str(number), "py150, x", number * TOKENS, TOKENS, 0, TOKENS)
        for number in range(DOCUMENTS)
    )
    observations = torch.randn(total, len(POINTS), HIDDEN, generator=chance).numpy()
    return Episodes(
        observations, rewards.numpy(), right.numpy(), optimal.numpy(), documents, 15,
        generated=False, exit_points=POINTS, num_layers=LAYERS,
    )  # fmt: skip


def report(
    benchmark: Any,
    what: str,
    figure: Callable[[float], float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    """Print a figure of the median round's seconds; fail where the fastest round's is twice as bad as its target."""
    seconds = benchmark.stats.stats.data
    value, best = figure(statistics.median(seconds)), figure(min(seconds))
    benchmark.extra_info[what] = round(value, 3)
    target = f"≥ {at_least:,}" if at_least is not None else f"≤ {at_most:,}" if at_most is not None else "none"
    print(f"\n  {what}: {value:,.1f}  (target {target})")
    assert best >= (at_least or 0) / 2
    assert at_most is None or best <= 2 * at_most


def test_many_environments(benchmark: Any, episodes: Episodes) -> None:
    count = AgentSettings().envs
    env = ExitVecEnv(episodes, count)
    env.reset()
    actions = itertools.cycle([*(np.random.default_rng(0).random((997, count)) < 0.3).astype(np.int64)])

    def steps() -> None:
        for _ in range(500):
            env.step(next(actions))

    benchmark.pedantic(steps, rounds=5, warmup_rounds=1)
    report(benchmark, "vectorised, steps/s without learning", lambda s: 500 * count / s, at_least=10_000)


def test_learning(benchmark: Any, episodes: Episodes, tmp_path: Path) -> None:
    settings = AgentSettings(steps=4 * 4096)

    def loop() -> float:
        start = time.perf_counter()
        learn(
            ExitVecEnv(episodes, settings.envs), settings, [*POINTS, LAYERS], seed=0,
            checkpoints=AgentCheckpoints(tmp_path / "checkpoint", "agent", {}), log=tmp_path / "log.jsonl",
            save_steps=4096, resume=False, progress=Silent(), stop=threading.Event(),
        )  # fmt: skip
        return time.perf_counter() - start

    benchmark.pedantic(loop, rounds=3, warmup_rounds=1)
    report(benchmark, "whole learning loop, steps/s", lambda s: settings.steps / s, at_least=10_000)
    report(benchmark, "500,000 steps, minutes", lambda s: 500_000 * s / settings.steps / 60)


@pytest.mark.parametrize("name", AGENT_OBSERVATIONS)
def test_decision(benchmark: Any, name: str, tmp_path: Path) -> None:
    """Through the strategy, one row, at every exit point but the first in turn; the shared exit head."""
    observation = AGENT_OBSERVATIONS[name]
    torch.manual_seed(0)
    width = observation.width(HIDDEN, len(POINTS))
    modules = [
        torch.nn.Linear(width, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2),
    ]  # fmt: skip
    facts = {
        "model": "m", "model_fingerprint": "f", "exit_head": "shared", "hidden_size": HIDDEN,
        "exit_points": list(POINTS), "threshold": 0.9, "temperature": 1.0,
    }  # fmt: skip
    write_controller(
        tmp_path / "rl.json", "rl", observation, {"shared": Network.of_module(modules).difference(1, 0)}, facts
    )
    info = ModelInfo(
        "m", "llama", LAYERS, HIDDEN, 49152, POINTS, 2048, "float32", "pretrained", 1, 1, 1, 1,
        fingerprint="f", artefacts=(str(tmp_path),),
    )  # fmt: skip
    rule = ReinforcementLearning().start(info, Batch((0,), "cpu"))
    views, before = [], None
    for point in POINTS:
        state = torch.randn(1, HIDDEN)
        before = SimpleNamespace(
            exit_layer=point,
            hidden_state=state,
            exit_state=state,
            previous=before,
            once=lambda key, compute: compute(),  # a view answers each rule once
        )
        views.append(before)

    def decide() -> None:
        with torch.inference_mode():
            for _ in range(50):
                for view in views[1:]:
                    rule.should_exit(view)  # type: ignore[arg-type]

    benchmark.pedantic(decide, rounds=15, warmup_rounds=2)
    asked = 50 * (len(POINTS) - 1)
    report(benchmark, f"decision on the {name} observation, µs", lambda s: 1e6 * s / asked, at_most=40)
