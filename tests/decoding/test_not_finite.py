"""Weights and activations that overflow: a row whose logits or scores are no numbers fails, and the others go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ExitView, Lossless, Strategy
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.exit_modules.linear import LinearExit
from harness.decoding.readings import best, choices
from harness.decoding.teacher_forcing import TeacherForcing
from harness.errors import ModelError
from harness.registry import KV_POLICIES
from strategies.confidence import Confidence
from strategies.entropy import Entropy
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.margin import Margin
from strategies.oracle import Oracle
from strategies.patience import Patience
from strategies.random import Random
from tests.crossing import in_turn
from tests.decoding.conftest import decode_open

LAYERS, NEW = 6, 8
NAN, INFINITY = math.nan, math.inf


def decode(engine: Engine, prompts: Sequence[Sequence[int]], strategy: Strategy, kv: str, **more: Any) -> Any:
    return engine.decode(prompts, strategy, kv=kv, max_new_tokens=[NEW] * len(prompts), **more)


def engine_with(case: Any, **parts: Any) -> Engine:
    return Engine(replace(case.engine.backbone, **parts), case.info)


def poisoned(case: Any, bad: int) -> Engine:
    """An engine whose embedding of one token is NaN, as an overflow for some prompts leaves it."""
    embed = case.engine.backbone.embed

    def lost(token_ids: Tensor, positions: Tensor) -> Tensor:
        states = embed(token_ids, positions).clone()
        states[token_ids == bad] = NAN
        return states

    return engine_with(case, embed=lost)


@pytest.fixture
def broken_last_layer(make_case: Callable[..., Any]) -> Any:
    """A model of its own with one NaN in the last layer's weights."""
    case = make_case("llama")
    case.engine.backbone.blocks[-1].mlp_out.weight[0, 0] = NAN
    return case


# ------------------------------------------------------------------------------------ one choice


@in_turn(dtype=[torch.float32, torch.bfloat16, torch.float16], columns=[1, 97, 49152])
def test_the_choice_is_argmax_with_its_logit(dtype: torch.dtype, columns: int) -> None:
    chance = torch.Generator().manual_seed(columns)
    for rows in (1, 2, 5):
        logits = torch.randint(-2, 3, (rows, columns), generator=chance).to(dtype)  # of many equals the first
        tokens, values = best(logits)
        assert tokens.tolist() == logits.argmax(-1).tolist()
        assert tokens.tolist() == [row.index(max(row)) for row in logits.tolist()]
        assert choices((tokens, values)) == [(row.index(max(row)), max(row)) for row in logits.tolist()]


@in_turn(dtype=[torch.float32, torch.bfloat16, torch.float16], place=[0, 40, 96])
def test_one_logit_tells_of_all(dtype: torch.dtype, place: int) -> None:
    logits = torch.zeros(4, 97, dtype=dtype)
    logits[0, place], logits[1, place], logits[2, place] = NAN, INFINITY, -INFINITY
    logits[3, :] = -INFINITY
    nan, infinite, sound, nothing = [logit for _, logit in choices(best(logits))]
    assert math.isnan(nan)
    assert (infinite, sound, nothing) == (INFINITY, 0.0, -INFINITY)  # a token that can never be chosen is no fault


# ------------------------------------------------------------------------------ rows of a batch


@in_turn(
    strategy=[Full(), Fixed(layer=3), Confidence(threshold=0.6), Random(probability=0.3), Oracle()],
    kv=KV_POLICIES.names(),
)
def test_of_three_rows_one_fails_and_the_others_are_as_alone(
    llama: Any, prompts: list[list[int]], kv: str, strategy: Strategy
) -> None:
    alone = [decode(llama.engine, [prompt], strategy, kv)[0] for prompt in prompts]
    others = {token for row in (0, 2) for token in (*prompts[row], *alone[row].token_ids)}
    bad = next(token for token in prompts[1] if token not in others)
    done = decode(poisoned(llama, bad), prompts, strategy, kv)
    assert [done[0].token_ids, done[2].token_ids] == [alone[0].token_ids, alone[2].token_ids]
    assert [done[0].exit_layers, done[2].exit_layers] == [alone[0].exit_layers, alone[2].exit_layers]
    assert [done[0].failure, done[2].failure] == [None, None]
    assert done[1].token_ids == []
    assert done[1].finish_reason is None
    assert isinstance(done[1].failure, ModelError)
    assert "are not finite at token 1: " in str(done[1].failure)


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_a_row_fails_at_the_token_where_it_overflows(llama: Any, prompts: list[list[int]], kv: str) -> None:
    alone = [decode(llama.engine, [prompt], Full(), kv)[0] for prompt in prompts]
    others = {token for row in (0, 2) for token in (*prompts[row], *alone[row].token_ids)}
    text = alone[1].token_ids
    place, bad = next(
        (place, token)
        for place, token in enumerate(text[:-1])
        if token not in others and token not in prompts[1] and text.index(token) == place
    )
    done = decode(poisoned(llama, bad), prompts, Full(), kv)
    assert [one.token_ids for one in done] == [alone[0].token_ids, text[: place + 1], alone[2].token_ids]
    assert str(done[1].failure).startswith(f"logits of layer {LAYERS} are not finite at token {place + 2}: ")
    replayed = poisoned(llama, bad).replay(prompts, [[LAYERS] * NEW] * 3, kv=kv, max_new_tokens=[NEW] * 3)
    assert [str(one.failure) for one in replayed] == [str(one.failure) for one in done]


def test_a_draft_that_overflows_fails_at_the_exit_that_made_it(llama: Any, prompts: list[list[int]]) -> None:
    """Before full depth has read it."""
    how: Any = {"strategy": Fixed(layer=3), "kv": "recompute", "lossless": Lossless(5)}
    tried = 0
    for prompt in prompts:
        bad = decode(llama.engine, [prompt], **how)[0].token_ids[0]
        if bad in prompt:
            continue
        (done,) = decode(poisoned(llama, bad), [prompt], **how)
        assert done.token_ids == [bad]
        assert str(done.failure).startswith("logits of layer 3 are not finite at token 2: ")
        tried += 1
    assert tried


def test_exits_before_the_layer_that_overflows_are_sound(broken_last_layer: Any, prompts: list[list[int]]) -> None:
    engine = broken_last_layer.engine
    assert all(one.failure is None for one in decode(engine, prompts, Fixed(layer=3), "none"))
    for kv in ("none", "recompute"):
        assert all(f"layer {LAYERS} are not finite" in str(one.failure) for one in decode(engine, prompts, Full(), kv))
    with pytest.raises(ModelError, match=f"logits of layer {LAYERS} are not finite at token 1: "):
        TeacherForcing(broken_last_layer.engine, prompts[0], NEW)


# ---------------------------------------------------------------------------------------- scores


class Own(Strategy):
    """Looks at logits itself and compares what it makes of them."""

    def should_exit(self, view: ExitView) -> Tensor:
        return view.logits.softmax(-1).amax(-1) > 2


@in_turn(
    strategy=[Confidence(threshold=1), Entropy(threshold=0), Margin(threshold=1), Patience(patience=5), Own],
    kv=KV_POLICIES.names(),
)
def test_a_score_that_is_no_number_decides_nothing(
    llama: Any, prompts: list[list[int]], strategy: Strategy, kv: str
) -> None:
    """A comparison with NaN is false, so that the exit would be passed as if its strategy had wanted it."""
    strategy = strategy() if strategy is Own else strategy
    width = llama.info.hidden_size
    engine = engine_with(llama, shortcuts={2: LinearExit({"": Linear(torch.full((width, width), NAN))})})
    token = 1 if kv == "none" else 2
    for one in decode(engine, prompts, strategy, kv):
        assert str(one.failure).startswith(f"scores of layer 2 are not finite at token {token}: ")
    assert all(one.failure is None for one in decode(engine, prompts, Fixed(layer=3), kv))
    for one in decode(engine, prompts, Fixed(layer=2), kv):
        assert str(one.failure).startswith(f"logits of layer 2 are not finite at token {token}: ")


@dataclass(frozen=True)
class Kept(Strategy):
    """Keeps one score per row: ``value`` for rows of even positions, and 0 for others."""

    value: float
    shape: tuple[int, ...] = ()

    def should_exit(self, view: ExitView) -> Tensor:
        even = (view.position % 2 == 0).view(-1, *[1] * len(self.shape)).expand(-1, *self.shape)
        kept = view.once("kept", lambda: torch.where(even, self.value, 0.0))
        return torch.zeros_like(view.rows, dtype=torch.bool) & (kept.flatten(1).sum(1) > 0 if self.shape else kept > 0)


@pytest.mark.parametrize("shape", [(), (3, 4)])
def test_only_the_row_of_the_score_fails(llama: Any, prompts: list[list[int]], shape: tuple[int, ...]) -> None:
    done = decode(llama.engine, prompts, Kept(NAN, shape), "propagate")  # of 7, 12 and 5 tokens
    assert ["token 3" in str(done[0].failure), "token 2" in str(done[1].failure)] == [True, True]
    assert [len(one.token_ids) for one in done] == [3, 2, 3]  # the token it made all the same


def test_an_infinite_score_compares(llama: Any, prompts: list[list[int]]) -> None:
    expected = decode(llama.engine, prompts, Full(), "propagate")
    for value in (INFINITY, -INFINITY):
        done = decode(llama.engine, prompts, Kept(value), "propagate")
        assert [one.token_ids for one in done] == [one.token_ids for one in expected]
        assert all(one.failure is None for one in done)


def test_rows_with_rules_of_their_own_fail_alone(llama: Any, prompts: list[list[int]]) -> None:
    strategies = (Confidence(threshold=0.6), Kept(NAN), Random(probability=0.3))
    rows = [(prompts[row], one, NEW) for row, one in enumerate(strategies)]
    made, _ = decode_open(llama.engine, rows, "propagate", 7)
    assert [one.failure is None for one in made] == [True, False, True]
    for row in (0, 2):
        (alone,) = decode(llama.engine, [prompts[row]], strategies[row], "propagate", seeds=[7])
        assert (made[row].token_ids, made[row].exit_layers) == (alone.token_ids, alone.exit_layers)


# ------------------------------------------------------------------------------------ stop rules


def test_a_stop_rule_that_raises_fails_its_row_only(llama: Any, prompts: list[list[int]]) -> None:
    alone = decode(llama.engine, prompts, Full(), "propagate")
    marked = alone[1].token_ids[:2]
    assert all(one.token_ids[:2] != marked for one in (alone[0], alone[2]))

    def stop(token_ids: Sequence[int]) -> bool:
        if list(token_ids[:2]) == marked:
            raise IndexError("no such piece")
        return False

    done = decode(llama.engine, prompts, Full(), "propagate", stop=stop)
    assert [done[0].token_ids, done[2].token_ids] == [alone[0].token_ids, alone[2].token_ids]
    assert str(done[1].failure) == "cannot say whether it has ended: IndexError: no such piece."
    assert len(done[1].token_ids) == 2
