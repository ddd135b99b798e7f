"""An exit's module: what its tokens are, what it costs, and that none is the identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ExitModule, ExitView, Strategy
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.exit_modules.linear import LinearExit
from harness.decoding.exit_modules.mlp import LowRankMLP
from harness.decoding.generation import Generation
from harness.registry import KV_POLICIES
from strategies.confidence import Confidence
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.oracle import Oracle
from strategies.patience import Patience
from strategies.random import Random
from strategies.saturation import Saturation
from tests.crossing import in_turn
from tests.decoding.conftest import KINDS

LAYERS, NEW = 6, 6


def maps(width: int, points: Sequence[int] = (1, 2, 3, 4, 5)) -> dict[int, ExitModule]:
    """A map of its own for every exit, far enough from the identity that other tokens win."""
    chance = torch.Generator().manual_seed(7)

    def drawn(rows: int, columns: int, middle: Tensor | float = 0.0) -> Linear:
        return Linear(middle + 0.4 * torch.randn(rows, columns, generator=chance), torch.randn(rows, generator=chance))

    return {point: LinearExit({"": drawn(width, width, torch.eye(width))}) for point in points}


def perceptrons(width: int, points: Sequence[int] = (1, 2, 3, 4, 5)) -> dict[int, ExitModule]:
    """Likewise a low-rank perceptron for every exit."""
    chance = torch.Generator().manual_seed(7)

    def drawn(rows: int, columns: int) -> Linear:
        return Linear(torch.randn(rows, columns, generator=chance), torch.randn(rows, generator=chance))

    return {point: LowRankMLP({"in_": drawn(8, width), "out_": drawn(width, 8)}) for point in points}


def by_hand(module: ExitModule | None, state: Tensor) -> Tensor:
    """W h + b, or h + W₂ silu(W₁ norm(h) + b₁) + b₂; nothing without a module."""
    weights: Any = {} if module is None else module.maps
    if isinstance(module, LinearExit):
        return weights[""].weight @ state + weights[""].bias
    if isinstance(module, LowRankMLP):
        inner = weights["in_"].weight @ (state / (state.square().mean() + 1e-6).sqrt()) + weights["in_"].bias
        return state + weights["out_"].weight @ (inner * torch.sigmoid(inner)) + weights["out_"].bias
    return state


def engine_with(case: Any, shortcuts: Mapping[int, Any]) -> Engine:
    return Engine(replace(case.engine.backbone, shortcuts=shortcuts), case.info)


def tokens_of(done: Sequence[Generation]) -> list[list[int]]:
    return [one.token_ids for one in done]


@pytest.fixture
def read_out(reference: Any) -> Callable[[Any, Tensor], int]:
    """The token of transformers' own final norm and LM head, from one state."""

    def read(case: Any, state: Tensor) -> int:
        with torch.no_grad():
            return int(reference(case.reference, "none", [1])._head(state.unsqueeze(0)).argmax())

    return read


# ------------------------------------------------------------------------------------- exit states


def test_a_view_shows_both_states(llama: Any, prompts: list[list[int]]) -> None:
    some, layers = maps(64, (2, 4)), []

    class Looking(Strategy):
        def should_exit(self, view: ExitView) -> Tensor:
            layers.append(view.exit_layer)
            linear = some.get(view.exit_layer)
            expected = view.hidden_state if linear is None else linear(view.hidden_state)
            assert torch.equal(view.exit_state, expected)
            assert view.exit_state is view.exit_state
            assert torch.equal(view.logits, llama.engine.backbone.logits(expected))
            if view.previous is not None:
                before = some.get(view.exit_layer - 1)
                earlier = view.previous.hidden_state
                assert torch.equal(view.previous.exit_state, earlier if before is None else before(earlier))
            return torch.zeros(len(view.rows), dtype=torch.bool)

    engine_with(llama, some).decode(prompts, Looking(), kv="propagate", max_new_tokens=[3] * 3)
    assert layers == [1, 2, 3, 4, 5] * 2


# ------------------------------------------------------------------------------------------ tokens


@pytest.mark.slow
@in_turn(case=KINDS, make=[maps, perceptrons])
def test_an_exit_s_token_is_the_head_of_the_mapped_state_of_transformers(
    case: Any, make: Any, prompts: list[list[int]], schedule: Any, exits: Any, read_out: Callable[[Any, Tensor], int]
) -> None:
    """Without a cache: every token is argmax(lm_head(norm(module(h)))), h transformers' own hidden state."""
    shortcuts, planned = make(case.info.hidden_size), exits(3, NEW, first=2)
    done = engine_with(case, shortcuts).decode(prompts, schedule(planned), kv="none", max_new_tokens=[NEW] * 3)
    plain = case.engine.decode(prompts, schedule(planned), kv="none", max_new_tokens=[NEW] * 3)
    assert tokens_of(done) != tokens_of(plain)
    for prompt, one, layers in zip(prompts, done, planned, strict=True):
        assert one.exit_layers == layers
        for step, layer in enumerate(layers):
            ids = torch.tensor([[*prompt, *one.token_ids[:step]]])
            with torch.no_grad():
                out = case.reference(ids, output_hidden_states=True)
            if layer == LAYERS:
                expected = int(out.logits[0, -1].argmax())
            else:
                expected = read_out(case, by_hand(shortcuts[layer], out.hidden_states[layer][0, -1]))
            assert one.token_ids[step] == expected, (step, layer)


@in_turn(rounds=2, kv=KV_POLICIES.names(), looking=[True, False], make=[maps, perceptrons])
def test_every_policy_and_a_replay_read_each_exit_s_tokens_through_its_own_map(
    llama: Any, kv: str, looking: bool, make: Any, prompts: list[list[int]], schedule: Any, exits: Any,
    read_out: Callable[[Any, Tensor], int],
) -> None:  # fmt: skip
    some, planned = make(64, (2, 4, 5)), exits(3, NEW)  # layers 1 and 3 have the shared head
    engine, plan, checked = engine_with(llama, some), schedule(planned, looking=looking), list[int]()
    done = engine.decode(prompts, plan, kv=kv, max_new_tokens=[NEW] * 3)
    for sight in plan.seen:
        step = sight.position - len(prompts[sight.row]) + 1
        if done[sight.row].exit_layers[step] == sight.layer:
            expected = read_out(llama, by_hand(some.get(sight.layer), sight.hidden_state))
            assert done[sight.row].token_ids[step] == expected
            checked.append(sight.layer)
    assert len(checked) == sum(layer < LAYERS for one in done for layer in one.exit_layers)
    assert set(checked) == {1, 2, 3, 4, 5}
    assert tokens_of(engine.replay(prompts, planned, kv=kv, max_new_tokens=[NEW] * 3)) == tokens_of(done)


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_the_last_layer_never_goes_through_a_map(llama: Any, kv: str, prompts: list[list[int]]) -> None:
    engine = engine_with(llama, {**maps(64), LAYERS: LinearExit({"": Linear(torch.zeros(64, 64))})})
    full, plain = (each.decode(prompts, Full(), kv=kv, max_new_tokens=[NEW] * 3) for each in (engine, llama.engine))
    assert tokens_of(full) == tokens_of(plain)
    assert [one.shortcut_evaluations for one in full] == [0] * 3


@pytest.mark.slow
@in_turn(case=KINDS, kv=KV_POLICIES.names())
def test_maps_that_change_nothing_are_the_shared_head(
    case: Any, kv: str, prompts: list[list[int]], schedule: Any, exits: Any
) -> None:
    """Token for token and exit for exit, whoever decides."""
    width = case.info.hidden_size
    identity = LinearExit({"": Linear(torch.eye(width), torch.zeros(width))})
    same = engine_with(case, dict.fromkeys(range(1, LAYERS), identity))
    for strategy in (schedule(exits(3, NEW)), Confidence(threshold=0.5), Oracle()):
        got, plain = (each.decode(prompts, strategy, kv=kv, max_new_tokens=[NEW] * 3) for each in (same, case.engine))
        assert tokens_of(got) == tokens_of(plain)
        assert [one.exit_layers for one in got] == [one.exit_layers for one in plain]
        assert [replace(one, shortcut_evaluations=0, token_times_s=[]) for one in got] == [
            replace(one, token_times_s=[]) for one in plain
        ]


# ------------------------------------------------------------------------------------------- costs


class CountingMap:
    """A map that remembers how many rows each call had."""

    def __init__(self, module: ExitModule, calls: list[int]) -> None:
        self._module, self._calls = module, calls

    def __call__(self, states: Tensor) -> Tensor:
        self._calls.append(len(states))
        return self._module(states)


@pytest.fixture
def counted(llama: Any) -> tuple[Engine, list[int]]:
    """An engine with maps after layers 2 to 5, and the rows of every call of theirs."""
    calls: list[int] = []
    some = {layer: CountingMap(module, calls) for layer, module in maps(64, (2, 3, 4, 5)).items()}
    return engine_with(llama, some), calls


@in_turn(
    strategy=[
        Full(),
        Fixed(layer=3),
        Random(probability=0.4),
        Saturation(threshold=0.8),
        Confidence(threshold=0.3),
        Patience(patience=2),
        Oracle(),
    ],
    kv=KV_POLICIES.names(),
)
def test_every_map_is_counted_and_no_other(
    counted: tuple[Engine, list[int]], strategy: Strategy, kv: str, prompts: list[list[int]]
) -> None:
    engine, calls = counted
    done = engine.decode(prompts, strategy, kv=kv, max_new_tokens=[8, 8, 5], seeds=[1, 2, 3])
    assert sum(calls) == sum(one.shortcut_evaluations for one in done)
    assert (sum(calls) == 0) is isinstance(strategy, Full)


def test_filling_from_a_map_applies_none_anew(
    counted: tuple[Engine, list[int]], llama: Any, prompts: list[list[int]]
) -> None:
    engine, calls = counted
    filling = Engine(engine.backbone, llama.info, kv_input="shortcut")
    done = filling.decode(prompts, Fixed(layer=3), kv="propagate", max_new_tokens=[5] * 3)
    assert [one.kv_fill_layers for one in done] == [3 * 3] * 3
    assert [one.shortcut_evaluations for one in done] == [4] * 3
    assert calls == [3] * 4


# After prefill 3, 6 and 5 layers of 6; asked at layers 1, 3 and 5, no map leads from layer 1.
PLANNED, POINTS = [6, 3, 6, 5], (1, 3, 5)


@pytest.mark.parametrize(("looking", "evaluations"), [(False, 2), (True, 1 + 2 + 2)])
def test_counts_of_one_row(
    counted: tuple[Engine, list[int]], looking: bool, evaluations: int, prompts: list[list[int]], schedule: Any
) -> None:
    engine, calls = counted
    plan = schedule([PLANNED], points=POINTS, looking=looking)
    done = engine.decode(prompts[:1], plan, kv="propagate", max_new_tokens=[4])[0]
    assert done.exit_layers == PLANNED
    assert done.shortcut_evaluations == evaluations  # logits that were asked for serve as the output
    assert calls == [1] * evaluations


@dataclass(frozen=True)
class Reading(Strategy):
    """Reads the exit state at every exit point, several times, and never the logits; leaves at the last."""

    def should_exit(self, view: ExitView) -> Tensor:
        for _ in range(3):
            assert view.exit_state.shape == view.hidden_state.shape
        return torch.full((len(view.rows),), view.exit_layer == 5)


def test_an_exit_state_costs_a_map_and_no_head(counted: tuple[Engine, list[int]], prompts: list[list[int]]) -> None:
    engine, calls = counted
    done = engine.decode(prompts[:1], Reading(), kv="propagate", max_new_tokens=[4])[0]
    assert done.exit_layers == [6, 5, 5, 5]
    assert done.shortcut_evaluations == 3 * 4  # what was read at layer 5 serves the output too
    assert done.lm_head_evaluations == 3
    assert calls == [1] * 12


def test_the_byte_model_pays_for_every_map(
    counted: tuple[Engine, list[int]], llama: Any, prompts: list[list[int]], schedule: Any
) -> None:
    """Bytes worked out by hand: 14 layers, 3 heads, 5 maps, one fill of 3 layers, and the cache behind them."""
    from harness.decoding.kv.propagate import Propagate
    from harness.records import ModelRecord, SampleRecord
    from reports.metrics.byte_model import decode_bytes

    engine, _ = counted
    plan = schedule([PLANNED], points=POINTS, looking=True)
    done = engine.decode(prompts[:1], plan, kv="propagate", max_new_tokens=[4])[0]
    sample = SampleRecord(
        window=0, operating_point="x", task="t", sample_id="s", prompt_ids=tuple(prompts[0]),
        token_ids=tuple(done.token_ids), exit_layers=tuple(done.exit_layers), exit_checks=done.exit_checks,
        lm_head_evaluations=done.lm_head_evaluations, layers_executed=done.layers_executed,
        kv_fill_layers=done.kv_fill_layers, shortcut_evaluations=done.shortcut_evaluations,
    )  # fmt: skip
    info = llama.info
    model = ModelRecord(
        name=info.name, family=info.family, weights="random", weights_source="", weights_sha256=None,
        tokenizer_source="", num_layers=LAYERS, hidden_size=64, vocab_size=97, exit_points=info.exit_points,
        dtype="float32", layer_bytes=1_000_000, lm_head_bytes=10_000, kv_projection_bytes=100, kv_entry_bytes=1,
        shortcut_bytes=64 * 65 * 4,
    )  # fmt: skip
    heads = 1 + 1 + (1 + 1 + 1 + 1) + (1 + 1 + 1)  # at 1 and 3; at 1, 3, 5 and the last layer; at 1, 3 and 5
    cache = 3 * 8 + 6 * 9 + 5 * 10  # layers × positions: seven of the prompt and the token's own
    expected = 14_000_000 + heads * 10_000 + 3 * 100 + cache
    assert decode_bytes(sample, model.model_copy(update={"shortcut_bytes": 0}), Propagate.facts) == expected
    assert decode_bytes(sample, model, Propagate.facts) == expected + 5 * 64 * 65 * 4
    assert {linear.nbytes for linear in maps(64).values()} == {64 * 65 * 4}
