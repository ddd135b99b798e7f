"""``harness train rl --optimum``: what it compares, on which documents, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.training.agents.optimum import TracedTokens, beside_optimum, render_optimum
from harness.training.agents.reward import REWARDS, describe, reward_table
from harness.training.traces.reading import held_out_rows, unseen_rows
from harness.training.traces.store import Traces
from tests.run_files import write_index

Command = Callable[..., Any]
POINTS, LAYERS = (4, 6, 10), 12


@pytest.fixture
def trace(cli: Command, tiny_llama: Path, rows_file: Path, tmp_path: Path) -> Path:
    """Eight documents of about two hundred tokens."""
    folder = tmp_path / "t"
    ran = cli(
        "trace", "--model", tiny_llama, "--task", "py150", "--source", rows_file, "--length", 200, "--out", folder
    )
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture
def train(cli: Command, tiny_llama: Path, trace: Path, tmp_path: Path) -> Command:
    def run(*arguments: object) -> Any:
        given = ["train", *arguments, "--model", tiny_llama, "--traces", trace]
        return cli(*given, "--out", tmp_path / "a", "--artefacts", tmp_path / "a")

    (tmp_path / "a").mkdir()
    return run


def test_without_an_agent_the_optimum_stands_alone(train: Command, tmp_path: Path, trace: Path) -> None:
    ran = train("rl", "--optimum", "--reward", "python")
    assert ran.code == 0, ran.err
    assert "| optimum as it is |" in ran.out
    assert "| threshold on the probability, held to 98% |" in ran.out
    assert "agent" not in ran.out
    assert "there is no agent for this reward" in " ".join(ran.err.split())
    found = json.loads((tmp_path / "a" / "optimum-rl.json").read_text())
    assert found["reward"] == describe(REWARDS["python"])
    assert found["agent"] is found["distance"] is None
    assert (found["documents"], found["tokens"]) == (8, Traces.open(trace).tokens)


def test_an_agent_is_compared_on_what_it_has_not_learned_from(train: Command, tmp_path: Path) -> None:
    assert train("rl", "--reward", "python", "--steps", 4096, "--name", "rl-eq2").code == 0
    assert train("classifier", "--epochs", 1).code == 0
    assert train("sec", "--epochs", 1).code == 0  # of three actions, so that no threshold on it can be compared
    ran = train("rl", "--optimum", "--reward", "python")
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "a" / "optimum-rl.json").read_text())
    assert (found["agent"], found["documents"]) == ("rl-eq2.json", 1)
    assert "| agent as it is |" in ran.out
    assert "| threshold on the classifier, held to 98% |" in ran.out
    trained = json.loads((tmp_path / "a" / "rl-eq2.json").read_text())["optimum"]
    assert trained["distance"] == found["distance"]  # its own card says the same
    rows = {(row["policy"], row["kept"]): row for row in trained["rows"]}
    assert rows["agent", False]["exit_layer"][0] == pytest.approx(
        json.loads((tmp_path / "a" / "rl-eq2.json").read_text())["replayed"]["thresholds"][0]["exit_layer"]
    )
    card = (tmp_path / "a" / "rl-eq2.md").read_text()
    assert re.search(r"^Distance of the agent to the optimum of its reward: [+-]\d\.\d{3} reward a token", card, re.M)
    assert "Reward: GREEN-CODE Eq. 2 and 3 (alpha 0.5, beta 0.5, gamma 0.5, epsilon 0.1)." in card
    assert "agent" not in train("rl", "--optimum", "--reward", "java").out  # it was trained for another reward


def test_a_trace_of_documents_the_agent_knows_is_refused(
    train: Command, cli: Command, trace: Path, tmp_path: Path
) -> None:
    assert train("rl", "--steps", 4096).code == 0
    index = json.loads((trace / "index.json").read_text())
    facts = json.loads((tmp_path / "a" / "rl.json").read_text())
    facts["documents"] = [*facts["documents"], "another"]  # of a larger trace than this, where it held out another
    facts["held_out_documents"] = ["another"]
    (tmp_path / "a" / "rl.json").write_text(json.dumps(facts))
    assert "has learned from every document of" in train("rl", "--optimum").error
    index["documents"][0]["key"] = "new"
    write_index(trace, index)
    assert train("rl", "--optimum").code == 0
    assert json.loads((tmp_path / "a" / "optimum-rl.json").read_text())["documents"] == 1


def test_unseen_rows_are_those_held_out_of_its_own_trace(trace: Path) -> None:
    traces = Traces.open(trace)
    document = traces.columns("document")["document"]
    streams, keys = [traces.documents[0]["stream"]], [found["key"] for found in traces.documents]
    own = {"trained_on": {"streams": streams}, "documents": keys, "seed": 3}
    assert torch.equal(unseen_rows(traces, document, own), held_out_rows(traces, document, seed=3))
    other = own | {"documents": ["x", keys[1]]}
    assert torch.equal(unseen_rows(traces, document, other), document != 1)
    assert unseen_rows(traces, document, own | {"documents": ["x"]}).all()
    said = own | {"held_out_documents": [keys[2], "x"], "seed": 7}  # whatever order another trace has them in
    assert torch.equal(unseen_rows(traces, document, said), document == 2)


def tokens(documents: int = 20, each: int = 100) -> TracedTokens:
    """Tokens whose probability tells how likely each exit is right."""
    chance = torch.Generator().manual_seed(0)
    probability = torch.rand(documents * each, len(POINTS), generator=chance).double()
    right = torch.rand(probability.shape, generator=chance) < probability
    rewards, _ = reward_table(right, POINTS, LAYERS, REWARDS["savings"])
    document = torch.arange(documents).repeat_interleave(each)
    return TracedTokens(probability, right, rewards, document, POINTS, LAYERS)


def test_an_agent_at_the_optimum_is_at_no_distance_and_a_worse_one_is_below() -> None:
    known = tokens()
    everything = torch.ones(len(known.right), dtype=torch.bool)
    near, far = known.probability - 0.8, torch.full_like(known.probability, -1.0)
    gaps = []
    for agent in (near, far):
        found = beside_optimum(known, everything, {}, agent=agent, keep=0.95, seed=0)
        assert found["distance"] is not None
        value, interval = found["distance"]["reward"]
        assert interval is not None
        assert interval[0] < value < interval[1]
        gaps.append(value)
    assert gaps[0] == pytest.approx(0, abs=0.03)  # 0.8 is where one layer saved is worth the risk of −4
    assert gaps[1] < -0.03  # it never exits and earns nothing
    text = render_optimum(found, describe(REWARDS["savings"]))
    assert f"Distance of the agent to the optimum of its reward: {gaps[1]:+.3f} [" in text


def test_the_constrained_optimum_keeps_the_agreement_and_earns_no_less_than_a_threshold() -> None:
    """Eq. 2 and 3 prefer wrong exits; under their optimum, held to the agreement, a plain threshold earns more."""
    known = tokens(30, 200)
    rewards, _ = reward_table(known.right, POINTS, LAYERS, REWARDS["java"])
    known = replace(known, rewards=rewards)
    everything = torch.ones(len(known.right), dtype=torch.bool)
    found = beside_optimum(known, everything, {"probability": known.probability}, agent=None, keep=0.95, seed=0)
    rows = {row["policy"]: row for row in found["rows"] if row["kept"]}
    asis = next(row for row in found["rows"] if not row["kept"])
    assert asis["agreement"][0] < 0.9
    assert asis["reward"][0] > max(row["reward"][0] for row in rows.values())
    assert {row["agreement"][0] >= 0.95 for row in rows.values()} == {True}
    best = rows["constrained optimum"]["reward"][0]
    assert best > rows["optimum"]["reward"][0]
    assert best > rows["probability"]["reward"][0] - 0.02


def test_a_policy_that_cannot_keep_the_agreement_is_said_to() -> None:
    known = tokens(6)
    known.right[:] = False
    everything = torch.ones(len(known.right), dtype=torch.bool)
    always = torch.full_like(known.probability, 1.0)
    found = beside_optimum(known, everything, {}, agent=always, keep=0.95, seed=0)
    assert found["distance"] is not None
    assert found["distance"]["exit_layer"] is None
    assert "one of them cannot hold 95%." in render_optimum(found, describe(REWARDS["savings"]))
