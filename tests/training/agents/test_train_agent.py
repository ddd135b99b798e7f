"""``harness train rl`` from a trace to an agent that decodes, and everything it refuses."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import parse_strategies
from harness.config.options import build_strategy
from harness.contracts import ModelRequest
from harness.contracts.recipes import TrainingRun
from harness.decoding.engine import Engine
from harness.models.artefacts import read_artefact
from harness.models.controllers import Network, find_controller
from harness.models.model import resolve
from harness.training.agents.exit_env import ExitVecEnv
from harness.training.agents.reward import REWARDS, describe
from harness.training.agents.train_agent import AGENT_OBSERVATIONS
from harness.training.recipes import Agent
from harness.training.traces import training_set
from harness.training.traces.store import Traces
from tests.training.tracing import trace_of

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def trace(tiny_llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight documents of about two hundred tokens, teacher-forced."""
    return trace_of(tiny_llama, rows_file, tmp_path_factory.mktemp("trace") / "t", length=200).folder


@pytest.fixture
def train(cli: Command, tiny_llama: Path, trace: Path, tmp_path: Path) -> Command:
    """``harness train rl`` on it, one rollout; further arguments win."""

    def run(*arguments: object, model: object = tiny_llama) -> Any:
        given = ["train", "rl", "--model", model, "--traces", trace, "--out", tmp_path / "a", "--steps", 4096]
        given += ["--rollout", 4096, "--batch", 512, "--envs", 64]
        return cli(*given, *arguments)

    return run


def test_from_a_trace_to_decoding(train: Command, tiny_llama: Path, trace: Path, tmp_path: Path) -> None:
    ran = train("--keep", 0.5)
    assert ran.code == 0, ran.err
    assert "| threshold (replayed) | mean exit layer | agreement |" in ran.out
    assert (tmp_path / "a" / "rl.md").read_text().strip() == ran.out.strip()
    resolved = resolve(
        ModelRequest(str(tiny_llama), weights="pretrained", artefacts=str(tmp_path / "a"), exit_head="shared")
    )
    agent = find_controller("rl", "", resolved.info)
    facts, traces = agent.artefact.facts, Traces.open(trace)
    assert agent.observation == AGENT_OBSERVATIONS["rich"]
    assert agent.exit_points == (4, 6, 10)
    assert (facts["temperature"], facts["steps"]) == (1.0, 4096)
    assert 0.5 <= facts["threshold"] <= 1
    assert facts["reward"] == {"rule": "savings", "penalty": 4.0}
    assert resolved.seen.documents == {document["key"] for document in traces.documents}
    assert resolved.seen.indices
    engine = Engine(resolved.load("cpu").backbone, resolved.info)
    layers = {}
    for name in ("rl:threshold=0", "rl:threshold=1", "rl"):
        (made,) = engine.decode(
            [list(range(5, 30))], build_strategy(*parse_strategies(name)), kv="propagate", max_new_tokens=[12]
        )
        layers[name] = made.exit_layers[1:]
    assert set(layers["rl:threshold=1"]) == {12}
    assert set(layers["rl:threshold=0"]) <= {4, 6, 10, 12}
    assert sum(layers["rl:threshold=0"]) <= sum(layers["rl"]) <= sum(layers["rl:threshold=1"])
    # the table is of the network that was written, asked as decoding asks it
    network = Network.of(agent.artefact.tensors(), "shared", facts["activation"])
    columns = traces.columns("hidden", "document")
    found = []
    for number in range(len(traces.documents)):  # one of the documents was held out
        scores = network(agent.observation.build_all(columns["hidden"][columns["document"] == number].float()))
        leaves = torch.cat((scores.squeeze(-1) >= 0, torch.ones(len(scores), 1, dtype=torch.bool)), dim=1)
        found.append(torch.tensor([4.0, 6.0, 10.0, 12.0])[leaves.int().argmax(1)].mean().item())
    row = facts["replayed"]["thresholds"][0]
    assert row["threshold"] == 0.5
    assert min(abs(row["exit_layer"] - each) for each in found) < 1e-3
    assert facts["replayed"]["documents"] == 1


def test_documents_that_the_exits_learned_from_are_left_out(
    train: Command, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_set, "documents_of", lambda *_: [1, 2, 4, 5, 6])
    ran = train()
    assert ran.code == 0, ran.err
    facts = read_artefact(tmp_path / "a" / "rl.json", "rl").facts
    tokens = [int(Traces.open(trace).documents[number]["tokens"]) for number in (1, 2, 4, 5, 6)]
    assert facts["trained_on"]["documents"] + facts["replayed"]["documents"] == len(tokens)
    assert facts["trained_on"]["tokens"] + facts["replayed"]["tokens"] == sum(tokens)


@pytest.mark.parametrize(
    ("arguments", "rule", "seen"),
    [
        (("--preset", "paper"), "python", "paper"),  # as the documents are
        (("--alpha", 0.5), "python", "rich"),
    ],
)
def test_the_paper_s_preset_brings_its_reward_and_observation(
    train: Command, tmp_path: Path, arguments: tuple[object, ...], rule: str, seen: str
) -> None:
    assert train(*arguments).code == 0
    facts = json.loads((tmp_path / "a" / "rl.json").read_text())
    assert facts["reward"] == describe(REWARDS[rule])
    assert facts["observation"] == AGENT_OBSERVATIONS[seen].as_dict()


def test_ctrl_c_keeps_a_checkpoint_and_resume_finishes(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = ExitVecEnv.step_wait, iter(range(64 + 10))  # in the second rollout

    def interrupt(env: ExitVecEnv) -> Any:
        if next(calls, None) is None:
            signal.raise_signal(signal.SIGINT)
        return step(env)

    with monkeypatch.context() as patch:
        patch.setattr(ExitVecEnv, "step_wait", interrupt)
        ran = train("--steps", 8192)
    assert ran.code == 130
    assert ran.out == ""
    assert "Go on with the same command and --resume." in " ".join(ran.err.split())
    assert not (tmp_path / "a" / "rl.json").exists()
    assert [path.stem for path in (tmp_path / "a" / "rl-checkpoint").glob("*.json")] == ["step-000004096"]
    ran = train("--steps", 8192, "--resume")
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (tmp_path / "a" / "rl-training.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in lines] == [4096, 8192, 8192]
    assert "--seed 1" not in train("--steps", 12288, "--resume", "--seed", 1).err
    assert "was trained with seed 0, now it is 1" in train("--steps", 12288, "--resume", "--seed", 1).error


REFUSALS = [
    (("--reward", "rust"), "--reward 'rust': input should be 'auto', 'java', 'python' or 'savings'."),
    (("--alpha", 2), "--alpha 2: input should be less than or equal to 1."),
    (
        ("--reward", "python", "--penalty", 2),
        "--penalty is no part of the python reward, which has alpha, beta, gamma, epsilon.",
    ),
    (("--reward", "savings", "--alpha", 1), "--alpha is no part of the savings reward, which has penalty."),
    (("--envs", 3), "--envs 3 must divide"),
    (("--tokens", 150), "is long enough for 60% context and 150 tokens"),
    (("--task", "py15"), "Did you mean 'py150'?"),
    (("--task", "javacorpus"), "has no document of javacorpus"),
    (("--resume",), "holds no checkpoint to resume from"),
]


def test_refusals(train: Command, tmp_path: Path) -> None:
    for arguments, message in REFUSALS:
        assert message in train(*arguments).error
        assert not list((tmp_path / "a").glob("*.json"))


def test_no_exit_keeps_everything(
    tiny_llama: Path, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no threshold keeps enough, the default never exits."""
    monkeypatch.setattr("harness.training.agents.train_agent.threshold_keeping", lambda *_: None)
    options = Agent(model=str(tiny_llama), traces=trace, out=tmp_path / "b", name="agent", steps=1)
    made = options.train(TrainingRun("rl", "x"))
    assert "it never exits by default" in made.report
    assert read_artefact(tmp_path / "b" / "agent.json", "rl").facts["threshold"] == 1.0
