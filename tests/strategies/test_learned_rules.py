"""Rules of trained networks: classifier, consistent and lte by a score of each exit point, rl by two logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Batch, ModelInfo, Strategy
from harness.decoding.engine import Engine
from harness.errors import ArtefactError
from harness.models.controllers import OBSERVATIONS, Network, Observation, write_controller
from harness.training.agents.reward import CONTINUE, EXIT
from harness.training.identity import identity
from strategies.classifier import Classifier
from strategies.consistent import Consistent
from strategies.lte import LearnToExit
from strategies.rl import ReinforcementLearning

ROWS, HIDDEN, OWN = 12, 5, 0.6
SCORED: dict[str, Callable[..., Strategy]] = {
    "classifier": Classifier, "consistent": Consistent, "lte": LearnToExit
}  # fmt: skip


def network(width: int, outputs: int = 1, *, seed: int = 0, activation: Any = "relu", shift: float = 0.0) -> Network:
    chance = torch.Generator().manual_seed(seed)
    inner = torch.randn(HIDDEN, width, generator=chance) / math.sqrt(width), torch.randn(HIDDEN, generator=chance)
    outer = 0.5 * torch.randn(outputs, HIDDEN, generator=chance), torch.full((outputs,), shift)
    return Network((inner, outer), activation)


def constant(model: ModelInfo, *outputs: float) -> Network:
    return Network(((torch.zeros(len(outputs), model.hidden_size), torch.tensor(outputs)),), "relu")


def write(
    kind: str, model: ModelInfo, networks: Mapping[str, Network], observation: Observation | None = None, **facts: Any
) -> None:
    described = identity(model, "t") | {"threshold": OWN} | facts
    write_controller(Path(model.artefacts[0]) / f"{kind}.json", kind, observation or Observation(), networks, described)


def answer(strategy: Strategy, model: ModelInfo, seen: Any) -> list[bool]:
    """Which rows of a view leave."""
    decided = strategy.start(model, Batch((0,) * len(seen.rows), "cpu")).should_exit(seen)
    assert decided.dtype == torch.bool
    answers: list[bool] = decided.tolist()
    return answers


def outputs(network: Network, inputs: Tensor) -> list[float]:
    """The definition, one row at a time in double precision."""
    x, act = inputs.double(), torch.relu if network.activation == "relu" else torch.tanh
    for weight, bias in network.layers[:-1]:
        x = act(weight.double() @ x + bias.double())
    weight, bias = network.layers[-1]
    both: list[float] = (weight.double() @ x + bias.double()).tolist()
    return both


def rich(state: Tensor, before: Tensor | None) -> Tensor:
    """What the rich observation is made of, by its definition."""
    x, size = state.double(), state.double().pow(2).mean().sqrt()
    change = [torch.zeros((), dtype=torch.float64)] * 2
    if before is not None:
        y = before.double()
        change = [x @ y / x.norm() / y.norm(), size.log() - y.pow(2).mean().sqrt().log()]
    return torch.stack([*(x / size), size.log(), *change])


@pytest.fixture
def states(model: ModelInfo) -> dict[int, Tensor]:
    """Exit layer → states of some rows, larger the deeper."""
    chance = torch.Generator().manual_seed(1)
    return {layer: layer * torch.randn(ROWS, 8, generator=chance) for layer in model.exit_points}


def chain(view: Any, states: dict[int, Tensor], upto: int) -> Any:
    """The view at an exit point, over the ones before it; fails when logits are looked at."""
    made: Any = None
    for layer in (layer for layer in states if layer <= upto):
        made = view(hidden_state=states[layer], previous=made, exit_layer=layer)
    return made


@pytest.mark.parametrize("kind", SCORED)
@pytest.mark.parametrize("seen_as", ["paper", "rich"])
def test_a_row_leaves_when_its_score_reaches_the_threshold(
    model: ModelInfo, view: Any, states: dict[int, Tensor], kind: str, seen_as: str
) -> None:
    """A head of its own at every exit point, or one for all; a threshold given, or the artefact's own."""
    width = model.hidden_size + (3 if seen_as == "rich" else 0)
    names = ["shared"] if kind == "lte" else list(map(str, model.exit_points))
    heads = {name: network(width, seed=place, shift=0.4) for place, name in enumerate(names)}
    write(kind, model, heads, OBSERVATIONS["rich"] if seen_as == "rich" else None)
    answers = []
    for threshold in (None, 0.2, 0.5, 0.8):
        before = None
        for layer, here in states.items():
            head = heads["shared" if kind == "lte" else str(layer)]
            pasts = [None] * ROWS if before is None else list(before)
            inputs = [rich(x, y) if seen_as == "rich" else x for x, y in zip(here, pasts, strict=True)]
            scores = [outputs(head, each)[0] for each in inputs]
            if kind != "lte":
                scores = [1 / (1 + math.exp(-score)) for score in scores]
            expected = [score >= (OWN if threshold is None else threshold) for score in scores]
            assert answer(SCORED[kind](threshold=threshold), model, chain(view, states, layer)) == expected
            answers += expected
            before = here
    assert any(answers)
    assert not all(answers)


def test_thresholds_by_hand(model: ModelInfo, view: Any, states: dict[int, Tensor]) -> None:
    seen = view(hidden_state=states[4])
    for kind in ("classifier", "consistent"):
        for logit, threshold, leaves in (
            *((certain, 1, False) for certain in (40.0, 1e4, 3e38)),  # as a probability it would reach it
            *((certain, 0.999, True) for certain in (40.0, 1e4, 3e38)),
            *((unlikely, 0, True) for unlikely in (-40.0, -3e38)),
            *((unlikely, 1e-9, False) for unlikely in (-40.0, -3e38)),
            (0.0, 0.5, True),
            (0.0, 0.5 + 1e-6, False),
        ):
            write(kind, model, {str(point): constant(model, logit) for point in model.exit_points})
            assert answer(SCORED[kind](threshold=threshold), model, seen) == [leaves] * ROWS, (kind, logit, threshold)
    for score, threshold, leaves in (
        (0.5, 0.5, True),  # the threshold itself is enough
        (0.5, 0.5 + 1e-6, False),
        (-0.1, 0, False),  # an estimate a little below 0 is no certainty
        (1.0, 1, True),  # certain of being right, unlike a probability that never gets there
        (1.99, 2, False),
        (3.0, 2, False),  # a regression may score anything; 2 never exits
    ):
        write("lte", model, {"shared": constant(model, score)})
        assert answer(LearnToExit(threshold=threshold), model, seen) == [leaves] * ROWS, (score, threshold)


def test_the_engine_leaves_where_the_head_says(engine: Engine) -> None:
    """Every exit layer worked out again from the hidden states of the sequence that came out."""
    info = engine.info
    head = network(info.hidden_size + 3, shift=0.5)
    write("lte", info, {"shared": head}, OBSERVATIONS["rich"])
    prompts, new = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [300, 7, 4, 99, 12]], 8
    done = engine.decode(prompts, LearnToExit(), kv="none", max_new_tokens=[new] * 3)
    for prompt, one in zip(prompts, done, strict=True):
        expected = []
        for step in range(new):
            states = [state[-1] for state in engine.read([*prompt, *one.token_ids[:step]], info.exit_points)]
            pairs = zip(info.exit_points, states, [None, *states], strict=False)
            leaving = [layer for layer, state, before in pairs if outputs(head, rich(state, before))[0] >= OWN]
            expected.append(min(leaving, default=info.num_layers))
        assert one.exit_layers == expected
    assert len({layer for one in done for layer in one.exit_layers}) >= 2


# ------------------------------------------------------------------------------------------------------- rl


def test_an_agent_leaves_when_exit_is_preferred_and_probable_enough(
    model: ModelInfo, view: Any, states: dict[int, Tensor]
) -> None:
    """The definition: the greedy action is exit, and its probability at this temperature is high enough."""
    policy = network(model.hidden_size, 2, activation="tanh")
    write("rl", model, {"shared": policy.difference(EXIT, CONTINUE)}, temperature=2.0)
    answers = []
    for options in (
        {}, {"temperature": 0.2}, {"threshold": 0.9}, {"threshold": 0.1}, {"threshold": 0.7, "temperature": 0.25},
        {"threshold": 0.55, "temperature": 3.0},
    ):  # fmt: skip
        threshold, temperature = options.get("threshold", OWN), options.get("temperature", 2.0)
        for layer in model.exit_points:  # one agent for all of them, told apart by nothing but the state
            expected = []
            for state in states[layer]:
                both = outputs(policy, state)
                powers = [math.exp(logit / temperature) for logit in both]
                expected.append(both[EXIT] > both[CONTINUE] and powers[EXIT] / sum(powers) >= threshold)
            seen = view(hidden_state=states[layer], exit_layer=layer)
            assert answer(ReinforcementLearning(**options), model, seen) == expected  # type: ignore[arg-type]
            answers += expected
    assert any(answers)
    assert not all(answers)


def test_an_agent_by_hand(model: ModelInfo, view: Any, states: dict[int, Tensor]) -> None:
    seen = view(hidden_state=states[4])
    for difference, temperature, threshold, leaves in (
        (math.log(9), 1.0, 0.899, True),  # e to the power of the difference over T is 9: a probability of 9/10
        (math.log(9), 1.0, 0.901, False),
        (math.log(9), 2.0, 0.749, True),
        (math.log(9), 2.0, 0.751, False),
        *((certain, 1.0, 1, False) for certain in (40.0, 3e38)),
        (40.0, 0.01, 1, False),
        (3e38, 1.0, 0.999, True),
        *((-1e-3, 1.0, threshold, False) for threshold in (0, 0.3, 1)),  # what prefers to go on is never overruled
    ):
        write("rl", model, {"shared": constant(model, difference)}, temperature=1.0)
        strategy = ReinforcementLearning(threshold=threshold, temperature=temperature)
        assert answer(strategy, model, seen) == [leaves] * ROWS, (difference, temperature, threshold)
    write("rl", model, {"shared": constant(model, 1.0)})
    assert ReinforcementLearning().trained_defaults(model)["temperature"] == 1.0


def test_an_agent_of_stable_baselines3_is_refused_unread(model: ModelInfo, tmp_path: Path) -> None:
    (tmp_path / "agent.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(ArtefactError, match=r"agent\.zip may be a pickle, which can run code when it is read"):
        ReinforcementLearning(agent=str(tmp_path / "agent.zip")).exit_points(model)
