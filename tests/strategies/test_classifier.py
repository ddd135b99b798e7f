"""σ(f_l(h)) ≥ τ, a head of its own at every exit point."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ModelInfo
from harness.models.artefacts import Artefact
from harness.models.controllers import Network, Observation, write_controller
from harness.training.identity import identity
from strategies.classifier import Classifier
from tests.trained_strategies import answer

ROWS, OWN = 12, 0.7


def heads_of(model: ModelInfo, *, seed: int = 0, hidden: int = 5, scale: float = 1.0) -> dict[str, Network]:
    """One head per exit point, all different."""
    chance = torch.Generator().manual_seed(seed)

    def layer(rows: int, columns: int, by: float = 1.0) -> tuple[Tensor, Tensor]:
        return by * torch.randn(rows, columns, generator=chance), by * torch.randn(rows, generator=chance)

    width = model.hidden_size
    return {
        str(point): Network(
            (layer(hidden, width, scale), layer(1, hidden)) if hidden else (layer(1, width, scale),), "relu"
        )
        for point in model.exit_points
    }


def write(
    model: ModelInfo, networks: dict[str, Network], *, name: str = "classifier", threshold: float = OWN
) -> Artefact:
    path = Path(model.artefacts[0]) / f"{name}.json"
    return write_controller(
        path, "classifier", Observation(), networks, identity(model, "t") | {"threshold": threshold}
    )


def probability(network: Network, state: Tensor) -> float:
    """The definition, one row at a time in double precision."""
    x = state.double()
    for weight, bias in network.layers[:-1]:
        x = torch.stack([sum(w * v for w, v in zip(row, x, strict=True)) for row in weight.double()]) + bias.double()
        x = x.clamp_min(0)
    weight, bias = network.layers[-1]
    return 1 / (1 + math.exp(-float((weight[0].double() * x).sum() + bias.double())))


@pytest.fixture
def states() -> Tensor:
    return torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------------------------------- decisions


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.97])
def test_a_row_leaves_when_its_head_s_probability_reaches_the_threshold(
    model: ModelInfo, view: Any, states: Tensor, threshold: float, hidden: int
) -> None:
    heads = heads_of(model, hidden=hidden)
    write(model, heads)
    decided = []
    for layer in model.exit_points:
        expected = [probability(heads[str(layer)], state) >= threshold for state in states]
        seen = view(hidden_state=states, exit_layer=layer)  # fails when logits or an earlier point are looked at
        assert answer(Classifier(threshold=threshold), model, seen) == expected
        decided += expected
    assert any(decided)
    assert not all(decided)


def test_the_heads_own_threshold_holds_unless_another_is_given(model: ModelInfo, view: Any, states: Tensor) -> None:
    heads = heads_of(model)
    write(model, heads, threshold=OWN)
    found = [probability(heads["6"], state) for state in states]
    seen = view(hidden_state=states, exit_layer=6)
    own, lower = [p >= OWN for p in found], [p >= 0.2 for p in found]
    assert own != lower
    assert answer(Classifier(), model, seen) == own
    assert answer(Classifier(threshold=OWN), model, seen) == own
    assert answer(Classifier(threshold=0.2), model, seen) == lower


def certain(model: ModelInfo, logit: float) -> dict[str, Network]:
    """Heads that say the same of every state."""
    return {
        str(point): Network(((torch.zeros(1, model.hidden_size), torch.tensor([logit])),))
        for point in model.exit_points
    }


@pytest.mark.parametrize("logit", [40.0, 1e4, 3e38])
def test_a_threshold_of_1_never_exits_however_certain_the_head(
    model: ModelInfo, view: Any, states: Tensor, logit: float
) -> None:
    write(model, certain(model, logit), threshold=1.0)
    assert torch.tensor(logit).sigmoid() == 1.0  # as a probability it would reach it
    seen = view(hidden_state=states)
    for strategy in (Classifier(), Classifier(threshold=1), Classifier(threshold=1.0)):
        assert not any(answer(strategy, model, seen))
    assert all(answer(Classifier(threshold=0.999), model, seen))


@pytest.mark.parametrize("logit", [-40.0, -1e4, -3e38])
def test_a_threshold_of_0_always_exits(model: ModelInfo, view: Any, states: Tensor, logit: float) -> None:
    write(model, certain(model, logit))
    seen = view(hidden_state=states)
    assert all(answer(Classifier(threshold=0), model, seen))
    assert not any(answer(Classifier(threshold=1e-9), model, seen))


def test_the_threshold_itself_is_enough(model: ModelInfo, view: Any, states: Tensor) -> None:
    write(model, certain(model, 0.0))
    seen = view(hidden_state=states)
    assert all(answer(Classifier(threshold=0.5), model, seen))
    assert not any(answer(Classifier(threshold=0.5 + 1e-6), model, seen))


# ------------------------------------------------------------------------------------ declarations


# --------------------------------------------------------------------------------- in the engine
