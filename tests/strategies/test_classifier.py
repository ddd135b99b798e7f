"""σ(f_l(h)) ≥ τ, a head of its own at every exit point."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import StrategySpec
from harness.config.options import build_strategy, option_facts
from harness.contracts import ModelInfo
from harness.decoding.engine import Engine
from harness.errors import ArtefactError, OptionError
from harness.models.artefacts import Artefact
from harness.models.controllers import Network, Observation, write_controller
from harness.registry import KV_POLICIES
from harness.training.identity import identity
from strategies.classifier import Classifier
from tests.trained_strategies import NEW, PROMPTS, answer, check_costs

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


def test_rows_decide_alike_in_any_company(model: ModelInfo, view: Any, states: Tensor) -> None:
    write(model, heads_of(model))
    strategy = Classifier()
    for layer in model.exit_points:
        together = answer(strategy, model, view(hidden_state=states, exit_layer=layer))
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(layer))
        mixed = answer(strategy, model, view(hidden_state=states[order], rows=order.tolist(), exit_layer=layer))
        assert mixed == [together[place] for place in order.tolist()]
        for place in range(ROWS):
            alone = view(hidden_state=states[place : place + 1], rows=[place], exit_layer=layer)
            assert answer(strategy, model, alone) == together[place : place + 1]


# ------------------------------------------------------------------------------------ declarations


def test_its_options_are_documented_and_frozen() -> None:
    strategy = build_strategy(StrategySpec("classifier"))
    assert strategy == Classifier()
    assert type(strategy).__doc__
    facts = {option.name: option for option in option_facts("classifier")}
    assert set(facts) == {"threshold", "heads"}
    assert all(option.description for option in facts.values())
    assert facts["threshold"].limits == "≥ 0, ≤ 1"
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(strategy, "threshold", 0.5)  # noqa: B010


@pytest.mark.parametrize("value", ["-0.1", "1.1", "high"])
def test_a_threshold_out_of_range_is_refused(value: str) -> None:
    with pytest.raises(OptionError, match=f"classifier:threshold={value} is not allowed"):
        build_strategy(StrategySpec("classifier", (("threshold", value),)))


def test_the_record_names_the_heads(model: ModelInfo) -> None:
    own, other = write(model, heads_of(model)), write(model, heads_of(model, seed=1), name="classifier-java")
    assert Classifier().artefacts(model) == {"classifier": own.sha256}
    assert Classifier(heads="classifier-java").artefacts(model) == {"classifier": other.sha256}
    assert Classifier(heads=str(other.path)).artefacts(model) == {"classifier": other.sha256}
    assert Classifier().exit_points(model) == model.exit_points
    assert not Classifier.rehearsed


def test_other_heads_decide_otherwise(model: ModelInfo, view: Any, states: Tensor) -> None:
    other = heads_of(model, seed=1)
    write(model, heads_of(model))
    write(model, other, name="classifier-java")
    seen = view(hidden_state=states)
    got = answer(Classifier(heads="classifier-java"), model, seen)
    assert got == [probability(other["4"], state) >= OWN for state in states]
    assert got != answer(Classifier(), model, seen)


def test_without_heads_the_commands_are_named_in_order(model: ModelInfo) -> None:
    for ask in (Classifier().exit_points, Classifier().artefacts):
        with pytest.raises(ArtefactError, match=r"there is no classifier\.json for model") as refused:
            ask(model)
        assert str(refused.value).endswith(
            "`harness trace --model model --out traces/model` ; "
            "`harness train classifier --model model --traces traces/model`"
        )


def test_heads_of_other_weights_are_refused_before_anything_is_loaded(model: ModelInfo) -> None:
    write(dataclasses.replace(model, fingerprint="0ddba11"), heads_of(model))
    (Path(model.artefacts[0]) / "classifier.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"was trained with weights 0ddba11 .* runs with 5ca1ab1e"):
        Classifier().exit_points(model)


# --------------------------------------------------------------------------------- in the engine


def test_the_engine_leaves_where_the_heads_say(engine: Engine) -> None:
    """Every exit layer worked out again from the hidden states of the sequence that came out."""
    info = engine.info
    heads = heads_of(info, scale=0.2)
    write(info, heads, threshold=0.5)
    done = engine.decode(PROMPTS, Classifier(), kv="none", max_new_tokens=[NEW] * 3)
    for prompt, one in zip(PROMPTS, done, strict=True):
        expected = []
        for step in range(NEW):
            states = engine.read([*prompt, *one.token_ids[:step]], info.exit_points)
            leaving = [
                layer
                for layer, state in zip(info.exit_points, states, strict=True)
                if probability(heads[str(layer)], state[-1]) >= 0.5
            ]
            expected.append(min(leaving, default=info.num_layers))
        assert one.exit_layers == expected
    assert len({layer for one in done for layer in one.exit_layers}) >= 3


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_checks_cost_no_lm_head_and_batches_change_nothing(engine: Engine, kv: str) -> None:
    write(engine.info, heads_of(engine.info, scale=0.2), threshold=0.5)
    check_costs(engine, Classifier(), kv)


def test_a_threshold_of_1_is_full_depth(engine: Engine) -> None:
    write(engine.info, heads_of(engine.info))
    done = engine.decode(PROMPTS, Classifier(threshold=1), kv="propagate", max_new_tokens=[NEW] * 3)
    assert {layer for one in done for layer in one.exit_layers} == {engine.info.num_layers}
