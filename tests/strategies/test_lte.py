"""g(x) ≥ τ, one head for all exit points."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ModelInfo
from harness.decoding.engine import Engine
from harness.models.artefacts import Artefact
from harness.models.controllers import OBSERVATIONS, Network, Observation, write_controller
from harness.training.identity import identity
from strategies.lte import LearnToExit
from tests.trained_strategies import NEW, PROMPTS, answer

ROWS, HIDDEN, OWN = 12, 5, 0.6


def head_of(model: ModelInfo, *, extra: int = 3, seed: int = 2) -> Network:
    """A head on ``extra`` numbers more than the state; its scores lie around one half."""
    chance = torch.Generator().manual_seed(seed)
    width = model.hidden_size + extra
    inner = torch.randn(HIDDEN, width, generator=chance) / math.sqrt(width), torch.randn(HIDDEN, generator=chance)
    return Network((inner, (0.5 * torch.randn(1, HIDDEN, generator=chance), torch.tensor([0.5]))), "relu")


def write(
    model: ModelInfo,
    head: Network,
    *,
    observation: Observation = OBSERVATIONS["rich"],
    name: str = "lte",
    threshold: float = OWN,
) -> Artefact:
    path = Path(model.artefacts[0]) / f"{name}.json"
    return write_controller(path, "lte", observation, {"shared": head}, identity(model, "t") | {"threshold": threshold})


def certainty(head: Network, state: Tensor, before: Tensor | None) -> float:
    """The definition of the score of the rich observation, one row at a time in double precision."""
    x, size = state.double(), state.double().pow(2).mean().sqrt()
    inputs = [*(x / size), size.log()]
    if before is None:
        inputs += [torch.zeros((), dtype=torch.float64)] * 2
    else:
        y = before.double()
        inputs += [x @ y / x.norm() / y.norm(), size.log() - y.pow(2).mean().sqrt().log()]
    (weight, bias), (last, shift) = head.layers
    inner = (weight.double() @ torch.stack(inputs) + bias.double()).clamp_min(0)
    return float(last[0].double() @ inner + shift.double())


@pytest.fixture
def states(model: ModelInfo) -> dict[int, Tensor]:
    """Exit layer → states of some rows, larger the deeper."""
    chance = torch.Generator().manual_seed(1)
    return {layer: layer * torch.randn(ROWS, 8, generator=chance) for layer in model.exit_points}


def chain(view: Any, states: dict[int, Tensor], upto: int, rows: Tensor | None = None) -> Any:
    """The view at an exit point, over the ones before it."""
    rows = torch.arange(ROWS) if rows is None else rows
    made: Any = None
    for layer in (layer for layer in states if layer <= upto):
        made = view(hidden_state=states[layer][rows], previous=made, rows=rows.tolist(), exit_layer=layer)
    return made


# -------------------------------------------------------------------------------------- decisions


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.8, 1.1])
def test_a_row_leaves_when_the_head_is_certain_enough(
    model: ModelInfo, view: Any, states: dict[int, Tensor], threshold: float
) -> None:
    """The same head at every exit point; a threshold is compared with the score as it is, beyond 0…1 too."""
    head = head_of(model)
    write(model, head)
    decided, before = [], None
    for layer, here in states.items():
        scores = [certainty(head, here[row], None if before is None else states[before][row]) for row in range(ROWS)]
        expected = [score >= threshold for score in scores]
        assert answer(LearnToExit(threshold=threshold), model, chain(view, states, layer)) == expected
        decided += expected
        before = layer
    assert any(decided)
    assert not all(decided)


def test_the_head_s_own_threshold_holds_unless_another_is_given(
    model: ModelInfo, view: Any, states: dict[int, Tensor]
) -> None:
    head = head_of(model)
    write(model, head, threshold=OWN)
    scores = [certainty(head, state, None) for state in states[4]]
    seen = chain(view, states, 4)
    own, lower = [score >= OWN for score in scores], [score >= 0.2 for score in scores]
    assert own != lower
    assert answer(LearnToExit(), model, seen) == own
    assert answer(LearnToExit(threshold=OWN), model, seen) == own
    assert answer(LearnToExit(threshold=0.2), model, seen) == lower


def constant(model: ModelInfo, score: float) -> Network:
    return Network(((torch.zeros(1, model.hidden_size), torch.tensor([score])),), "relu")


@pytest.mark.parametrize(
    ("score", "threshold", "leaves"),
    [
        (0.5, 0.5, True),  # the threshold itself is enough
        (0.5, 0.5 + 1e-6, False),
        (-0.1, 0, False),  # an estimate a little below 0 is no certainty
        (0.0, 0, True),
        (1.0, 1, True),  # certain of being right, unlike a probability that never gets there
        (1.2, 1.25, False),
        (1.99, 2, False),
        (3.0, 2, False),  # a regression may score anything; 2 never exits
    ],
)
def test_thresholds_by_hand(
    model: ModelInfo, view: Any, states: dict[int, Tensor], score: float, threshold: float, leaves: bool
) -> None:
    write(model, constant(model, score), observation=Observation())
    seen = view(hidden_state=states[4])  # fails when logits are looked at
    assert answer(LearnToExit(threshold=threshold), model, seen) == [leaves] * ROWS


# ------------------------------------------------------------------------------------ declarations


# --------------------------------------------------------------------------------- in the engine


def test_the_engine_leaves_where_the_head_says(engine: Engine) -> None:
    """Every exit layer worked out again from the hidden states of the sequence that came out."""
    info, head = engine.info, head_of(engine.info, seed=0)
    write(info, head)
    done = engine.decode(PROMPTS, LearnToExit(), kv="none", max_new_tokens=[NEW] * 3)
    for prompt, one in zip(PROMPTS, done, strict=True):
        expected = []
        for step in range(NEW):
            states = engine.read([*prompt, *one.token_ids[:step]], info.exit_points)
            befores = [None, *states]
            leaving = [
                layer
                for layer, state, before in zip(info.exit_points, states, befores, strict=False)
                if certainty(head, state[-1], None if before is None else before[-1]) >= OWN
            ]
            expected.append(min(leaving, default=info.num_layers))
        assert one.exit_layers == expected
    assert len({layer for one in done for layer in one.exit_layers}) >= 3
