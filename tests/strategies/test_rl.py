"""The agent prefers to exit, and softmax(logits / T)[exit] ≥ τ."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ModelInfo
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact
from harness.models.controllers import Network, Observation, write_controller
from harness.training.agents.reward import CONTINUE, EXIT
from harness.training.identity import identity
from strategies.rl import ReinforcementLearning
from tests.trained_strategies import answer

ROWS, HIDDEN, OWN = 12, 6, 0.8


def policy_of(model: ModelInfo, *, seed: int = 0, scale: float = 1.0) -> Network:
    """A policy with both of its logits, as it is in training."""
    chance = torch.Generator().manual_seed(seed)
    widths = ((HIDDEN, model.hidden_size), (HIDDEN, HIDDEN), (2, HIDDEN))
    layers = [(torch.randn(*shape, generator=chance), torch.randn(shape[0], generator=chance)) for shape in widths]
    weight, bias = layers[0]
    return Network(((scale * weight, scale * bias), *layers[1:]), "tanh")


def write(
    model: ModelInfo, policy: Network, *, name: str = "rl", threshold: float = OWN, temperature: float = 1.0
) -> Artefact:
    """The agent as `harness train rl` leaves it: the difference of the logits."""
    path = Path(model.artefacts[0]) / f"{name}.json"
    facts = identity(model, "t") | {"threshold": threshold, "temperature": temperature}
    return write_controller(path, "rl", Observation(), {"shared": policy.difference(EXIT, CONTINUE)}, facts)


def logits(policy: Network, state: Tensor) -> list[float]:
    """Both logits of one row, in double precision."""
    x = state.double()
    for weight, bias in policy.layers[:-1]:
        x = (weight.double() @ x + bias.double()).tanh()
    weight, bias = policy.layers[-1]
    both: list[float] = (weight.double() @ x + bias.double()).tolist()
    return both


def leaves(both: list[float], threshold: float, temperature: float = 1.0) -> bool:
    """The definition: the greedy action is exit, and its probability at this temperature is high enough."""
    powers = [math.exp(logit / temperature) for logit in both]
    return both[EXIT] > both[CONTINUE] and powers[EXIT] / sum(powers) >= threshold


@pytest.fixture
def states() -> Tensor:
    return torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------------------------------- decisions


def test_an_agent_that_gives_no_temperature_has_the_paper_s(model: ModelInfo) -> None:
    write(model, policy_of(model))
    file = Path(model.artefacts[0]) / "rl.json"
    said = json.loads(file.read_text())
    del said["temperature"]
    file.write_text(json.dumps(said))
    assert ReinforcementLearning().trained_defaults(model)["temperature"] == 1.0


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.9, 0.97])
def test_a_row_leaves_when_exit_is_preferred_and_probable_enough(
    model: ModelInfo, view: Any, states: Tensor, threshold: float, temperature: float
) -> None:
    policy = policy_of(model)
    write(model, policy)
    both = [logits(policy, state) for state in states]
    expected = [leaves(pair, threshold, temperature) for pair in both]
    strategy = ReinforcementLearning(threshold=threshold, temperature=temperature)
    for layer in model.exit_points:  # one agent for all of them, told apart by nothing but the state
        seen = view(hidden_state=states, exit_layer=layer)  # fails when logits or an earlier point are looked at
        assert answer(strategy, model, seen) == expected
    assert not all(expected)
    if threshold <= 0.7 and temperature <= 1:
        assert any(expected)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.4, 0.5])
def test_below_one_half_the_preference_alone_decides(
    model: ModelInfo, view: Any, states: Tensor, threshold: float
) -> None:
    policy = policy_of(model)
    write(model, policy)
    preferred = [both[EXIT] > both[CONTINUE] for both in (logits(policy, state) for state in states)]
    assert True in preferred
    assert False in preferred
    for temperature in (0.1, 1.0, 10.0):  # which of two is larger does not depend on it
        strategy = ReinforcementLearning(threshold=threshold, temperature=temperature)
        assert answer(strategy, model, view(hidden_state=states)) == preferred


def test_a_higher_temperature_asks_for_a_clearer_preference(model: ModelInfo, view: Any, states: Tensor) -> None:
    policy = policy_of(model)
    write(model, policy)
    counts = []
    for temperature in (0.01, 0.3, 1.0, 3.0, 100.0):
        strategy = ReinforcementLearning(threshold=0.8, temperature=temperature)
        counts.append(sum(answer(strategy, model, view(hidden_state=states))))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[-1] == 0


def test_the_agent_s_own_threshold_and_temperature_hold_unless_others_are_given(
    model: ModelInfo, view: Any, states: Tensor
) -> None:
    policy = policy_of(model)
    write(model, policy, threshold=OWN, temperature=2.0)
    both, seen = [logits(policy, state) for state in states], view(hidden_state=states)
    choices: list[tuple[dict[str, float], float, float]] = [
        ({}, OWN, 2.0),
        ({"threshold": 0.6}, 0.6, 2.0),
        ({"temperature": 0.2}, OWN, 0.2),
        ({"threshold": 0.95, "temperature": 0.2}, 0.95, 0.2),
    ]
    answers = []
    for options, threshold, temperature in choices:
        answers.append(answer(ReinforcementLearning(**options), model, seen))  # type: ignore[arg-type]
        assert answers[-1] == [leaves(pair, threshold, temperature) for pair in both]
    assert answers[0] != answers[1]
    assert answers[0] != answers[2]


def certain(model: ModelInfo, difference: float) -> Network:
    """A policy whose logits differ by so much, whatever it sees."""
    weight, bias = torch.zeros(2, model.hidden_size), torch.zeros(2)
    bias[EXIT] = difference
    return Network(((weight, bias),))


@pytest.mark.parametrize("difference", [40.0, 1e4, 3e38])
def test_a_threshold_of_1_never_exits_however_certain_the_agent(
    model: ModelInfo, view: Any, states: Tensor, difference: float
) -> None:
    write(model, certain(model, difference), threshold=1.0)
    assert torch.tensor([0.0, difference]).softmax(0)[1] == 1.0  # as a probability it would reach it
    seen = view(hidden_state=states)
    for strategy in (
        ReinforcementLearning(),
        ReinforcementLearning(threshold=1),
        ReinforcementLearning(temperature=0.01),
    ):
        assert not any(answer(strategy, model, seen))
    assert all(answer(ReinforcementLearning(threshold=0.999), model, seen))


@pytest.mark.parametrize(
    ("difference", "temperature", "reached", "missed"),
    [(math.log(9), 1.0, 0.899, 0.901), (math.log(9), 2.0, 0.749, 0.751), (math.log(3), 0.5, 0.899, 0.901)],
)
def test_probabilities_by_hand(
    model: ModelInfo,
    view: Any,
    states: Tensor,
    difference: float,
    temperature: float,
    reached: float,
    missed: float,
) -> None:
    # e to the power of the difference over T is 9, 3 and 9: probabilities 9/10, 3/4 and 9/10
    write(model, certain(model, difference))
    seen = view(hidden_state=states)
    for threshold, expected in ((reached, True), (missed, False)):
        strategy = ReinforcementLearning(threshold=threshold, temperature=temperature)
        assert answer(strategy, model, seen) == [expected] * ROWS


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_an_agent_that_prefers_to_go_on_is_never_overruled(
    model: ModelInfo, view: Any, states: Tensor, threshold: float
) -> None:
    write(model, certain(model, -1e-3))
    assert not any(answer(ReinforcementLearning(threshold=threshold), model, view(hidden_state=states)))


# ------------------------------------------------------------------------------------ declarations


def test_an_agent_of_stable_baselines3_is_refused_unread(model: ModelInfo, tmp_path: Path) -> None:
    (tmp_path / "agent.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(ArtefactError, match=r"agent\.zip may be a pickle, which can run code when it is read"):
        ReinforcementLearning(agent=str(tmp_path / "agent.zip")).exit_points(model)


# --------------------------------------------------------------------------------- in the engine
