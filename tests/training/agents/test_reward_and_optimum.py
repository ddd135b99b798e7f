"""Rewards by hand, and the optimum of one: by hand, against every policy there is, and as the command compares it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from harness.training.agents.optimum import (
    TracedTokens,
    beside_optimum,
    cross_fitted_advantages,
    fit_optimum,
    render_optimum,
    returns,
)
from harness.training.agents.reward import (
    CONTINUE,
    EXIT,
    REWARDS,
    Reward,
    RewardCoefficients,
    SavingsReward,
    describe,
    reward_table,
)
from harness.training.traces.reading import held_out_rows, unseen_rows
from harness.training.traces.store import Traces
from tests.run_files import write_index

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


Command = Callable[..., Any]


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
