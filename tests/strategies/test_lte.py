"""g(x) ≥ τ, one head for all exit points."""

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
from harness.models.controllers import OBSERVATIONS, Network, Observation, write_controller
from harness.registry import KV_POLICIES
from harness.training.identity import identity
from strategies.lte import LearnToExit
from tests.trained_strategies import NEW, PROMPTS, answer, check_costs

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


def test_rows_decide_alike_in_any_company(model: ModelInfo, view: Any, states: dict[int, Tensor]) -> None:
    write(model, head_of(model))
    for layer in states:
        together = answer(LearnToExit(), model, chain(view, states, layer))
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(layer))
        mixed = answer(LearnToExit(), model, chain(view, states, layer, order))
        assert mixed == [together[place] for place in order.tolist()]
        for place in range(ROWS):
            alone = chain(view, states, layer, torch.tensor([place]))
            assert answer(LearnToExit(), model, alone) == together[place : place + 1]


# ------------------------------------------------------------------------------------ declarations


def test_its_options_are_documented_and_frozen() -> None:
    strategy = build_strategy(StrategySpec("lte"))
    assert strategy == LearnToExit()
    assert type(strategy).__doc__
    facts = {option.name: option for option in option_facts("lte")}
    assert set(facts) == {"threshold", "heads"}
    assert all(option.description for option in facts.values())
    assert facts["threshold"].limits == "≥ 0, ≤ 2"
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(strategy, "threshold", 0.5)  # noqa: B010


@pytest.mark.parametrize("value", ["-0.1", "2.1", "high"])
def test_a_threshold_out_of_range_is_refused(value: str) -> None:
    with pytest.raises(OptionError, match=f"lte:threshold={value} is not allowed"):
        build_strategy(StrategySpec("lte", (("threshold", value),)))


def test_the_record_names_the_head(model: ModelInfo) -> None:
    own, other = write(model, head_of(model)), write(model, head_of(model, seed=1), name="lte-java")
    assert LearnToExit().artefacts(model) == {"lte": own.sha256}
    assert LearnToExit(heads="lte-java").artefacts(model) == {"lte": other.sha256}
    assert LearnToExit().exit_points(model) == model.exit_points
    assert not LearnToExit.rehearsed


def test_without_a_head_the_commands_are_named_in_order(model: ModelInfo) -> None:
    for ask in (LearnToExit().exit_points, LearnToExit().artefacts):
        with pytest.raises(ArtefactError, match=r"there is no lte\.json for model") as refused:
            ask(model)
        assert str(refused.value).endswith(
            "`harness trace --model model --out traces/model` ; `harness train lte --model model --traces traces/model`"
        )


def test_a_classifier_s_heads_are_no_lte_head(model: ModelInfo) -> None:
    facts = identity(model, "t") | {"threshold": OWN}
    path = Path(model.artefacts[0]) / "lte.json"
    write_controller(path, "classifier", Observation(), {"shared": constant(model, 0.5)}, facts)
    with pytest.raises(ArtefactError, match=r"lte\.json holds no lte"):
        LearnToExit().exit_points(model)


def test_a_head_that_looks_back_wants_the_exit_points_it_was_trained_at(model: ModelInfo) -> None:
    write(model, head_of(model))
    fewer = dataclasses.replace(model, exit_points=model.exit_points[::2])
    with pytest.raises(ArtefactError, match=r"Use --exit-points 4,6,8,10,12,14,18,22,26, or train it again"):
        LearnToExit().exit_points(fewer)
    write(model, head_of(model, extra=0), observation=OBSERVATIONS["normal"], name="lte-normal")
    assert LearnToExit(heads="lte-normal").exit_points(fewer) == fewer.exit_points


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


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_checks_cost_no_lm_head_and_batches_change_nothing(engine: Engine, kv: str) -> None:
    """Neighbours that leave between two exit points change nothing for a head that looks back."""
    write(engine.info, head_of(engine.info, seed=0))
    check_costs(engine, LearnToExit(), kv)
