"""Every layer, check, LM-head evaluation, K,V fill and draft is counted, and logits are computed once if at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import LM_HEAD, HeadChoice, Lossless, Strategy
from harness.decoding.blocks import Linear
from harness.decoding.drafts.lookup import Lookup
from harness.decoding.engine import Engine
from harness.records import DraftWork
from harness.registry import KV_POLICIES
from strategies.confidence import Confidence
from strategies.dynamic_exit import DynamicExit
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.oracle import Oracle
from strategies.patience import Patience
from strategies.predictor import Predictor
from strategies.random import Random
from strategies.saturation import Saturation
from strategies.shortlist import Shortlist
from tests.crossing import in_turn
from tests.decoding.conftest import FORMS

NEW, SEEDS = 16, [1, 2, 3]
# The first token at full depth (prefill), then 2, 6 and 4 layers of 6; asked at layers 2 and 4.
PLANNED, POINTS = [6, 2, 6, 4], (2, 4)

COUNTS = {  # layers and K,V fills
    # 2 + 6 + 4; the fill after the last token is never made, nobody would read it
    "propagate": (12, 4),
    # the second token catches up four layers with the third; the last still waits
    "recompute": (2 + (6 + 4) + 4, 0),
    "skip": (12, 0),
    "none": (4 + 2 + 6 + 4, 0),
}


@pytest.mark.parametrize("kv", COUNTS)
@pytest.mark.parametrize("looking", [False, True])
def test_counts_of_a_run(llama: Any, kv: str, looking: bool, prompts: list[list[int]], schedule: Any) -> None:
    first = kv == "none"  # the first token is asked about, too
    planned = [4, *PLANNED[1:]] if first else PLANNED
    plan = schedule([planned], points=POINTS, looking=looking)
    done = llama.engine.decode(prompts[:1], plan, kv=kv, max_new_tokens=[4])[0]
    assert done.exit_layers == planned
    assert (done.layers_executed, done.kv_fill_layers) == COUNTS[kv]
    assert done.exit_checks == 1 + 2 + 2 + 2 * first
    # looking: at 2; at 2, 4 and the last layer; at 2 and 4. Not looking: one output each.
    assert done.lm_head_evaluations == (1 + 3 + 2 + 2 * first if looking else 3 + first)


def test_a_run_of_waiting_tokens_is_charged_for_each_of_them(
    llama: Any, prompts: list[list[int]], schedule: Any
) -> None:
    # After 1, 1, 3: two tokens join at layer 1 for two layers; then all three join at 3 for three layers.
    plan = schedule([[6, 1, 1, 3, 6]])
    done = llama.engine.decode(prompts[:1], plan, kv="recompute", max_new_tokens=[5])[0]
    assert done.layers_executed == 1 + 1 + (3 + 2 * 2) + (6 + 3 * 3)


class CountingHead:
    """An LM head that remembers how many rows each call had."""

    def __init__(self, head: Linear) -> None:
        self._head = head
        self.weight = head.weight
        self.calls: list[int] = []

    def __call__(self, states: Tensor) -> Tensor:
        self.calls.append(len(states))
        return self._head(states)


@pytest.fixture
def counted(llama: Any) -> tuple[Engine, CountingHead]:
    backbone = llama.engine.backbone
    head = CountingHead(backbone.lm_head)
    return Engine(dataclasses.replace(backbone, lm_head=head), llama.info), head


@in_turn(
    strategy=[
        Full(),
        Fixed(layer=2),
        Random(probability=0.4),
        Saturation(threshold=0.8),
        Confidence(threshold=0.6),
        Patience(patience=2),
        Oracle(),
    ],
    kv=KV_POLICIES.names(),
)
def test_every_evaluation_is_counted_and_no_other(
    counted: tuple[Engine, CountingHead], strategy: Strategy, kv: str, prompts: list[list[int]]
) -> None:
    engine, head = counted
    done = engine.decode(prompts, strategy, kv=kv, max_new_tokens=[8, 8, 5], seeds=[1, 2, 3])
    prefill = 0 if kv == "none" else 3
    assert sum(head.calls) == prefill + sum(one.lm_head_evaluations for one in done)


def test_asking_again_costs_nothing(counted: tuple[Engine, CountingHead], prompts: list[list[int]]) -> None:
    engine, head = counted

    @dataclasses.dataclass(frozen=True)
    class Nosy(Strategy):
        def should_exit(self, view: Any) -> Tensor:
            for _ in range(3):
                assert view.logits is view.logits
                assert torch.equal(view.top_token, view.logits.argmax(-1))
                assert view.previous is None or torch.equal(view.previous.top_token, view.previous.logits.argmax(-1))
            return torch.zeros(len(view.rows), dtype=torch.bool)

    done = engine.decode(prompts[:1], Nosy(), kv="propagate", max_new_tokens=[3])[0]
    assert done.lm_head_evaluations == 2 * (5 + 1)
    assert len(head.calls) == 1 + 2 * 6


# ------------------------------------------------------------------------- of heads and shortlists


@in_turn(name=["classifier", "lte", "rl", "hash", "consistent"], kv=KV_POLICIES.names())
def test_a_check_of_the_state_reads_no_lm_head(
    llama: Any, prompts: list[list[int]], learned: Any, name: str, kv: str
) -> None:
    strategy = learned(name, llama.info)
    made = llama.engine.decode(prompts, strategy, kv=kv, max_new_tokens=[NEW] * 3)
    for one in made:
        asked = one.exit_layers if kv == "none" else one.exit_layers[1:]
        assert one.lm_head_evaluations == len(asked)  # the output's own
        assert one.exit_checks == sum(min(layer, 5) for layer in asked)  # at 1 to 5
    assert any(layer < 6 for one in made for layer in one.exit_layers)


@pytest.mark.parametrize("token", ["kept", "full"])
def test_a_shortlist_runs_the_whole_head_once_a_token(llama: Any, prompts: list[list[int]], token: str) -> None:
    strategy, layers = Shortlist(threshold=0.8, size=8, token=token), llama.engine.info.num_layers
    for one in llama.engine.decode(prompts, strategy, kv="recompute", max_new_tokens=[NEW] * 3, seeds=SEEDS):
        exits = one.exit_layers[1:]
        again = [layer for layer in exits if layer == layers or (token == "full" and layer > 1)]
        assert one.lm_head_evaluations == len(exits) + len(again)
        later = sum(min(layer, layers - 1) - 1 for layer in exits)  # exits are asked after layers 1 to 5
        assert one.cheap_head_evaluations == later
        assert one.cheap_head_bytes == later * 8 * llama.engine.info.hidden_size * 4
        assert one.cheap_head_tokens == sum(1 < layer < layers for layer in exits) * (token == "kept")


def test_a_shortlist_of_everything_is_the_rule_itself(llama: Any, prompts: list[list[int]]) -> None:
    whole = llama.engine.info.vocab_size
    settings: dict[str, Any] = {"kv": "recompute", "max_new_tokens": [NEW] * 3, "seeds": SEEDS}
    expected = llama.engine.decode(prompts, Confidence(threshold=0.3), **settings)
    found = llama.engine.decode(prompts, Shortlist(threshold=0.3, size=whole), **settings)
    assert [(one.token_ids, one.exit_layers) for one in found] == [(one.token_ids, one.exit_layers) for one in expected]


def test_an_lm_head_is_run_for_the_hits_alone(llama: Any, prompts: list[list[int]], learned: Any) -> None:
    """Once for the candidates, once where the last layer ends a token; the rest are hits, at exits behind the first."""
    strategy = learned("predictor", llama.info)
    never = Predictor(1.0, "full", strategy.predictor)
    settings: dict[str, Any] = {"kv": "recompute", "max_new_tokens": [NEW] * 3, "seeds": SEEDS}
    for one in llama.engine.decode(prompts, never, **settings):
        assert one.lm_head_evaluations == 2 * (NEW - 1)
        assert one.cheap_head_evaluations == 5 * (NEW - 1)
    for one in llama.engine.decode(prompts, strategy, **settings):
        exits = one.exit_layers[1:]
        assert one.lm_head_evaluations >= len(exits) + sum(layer > 1 for layer in exits)
        assert one.cheap_head_evaluations == sum(min(layer, 5) for layer in exits)


DRAFTED, LAYERS = 24, 6
REPEATING = [[5, 9, 40, 17, 5, 9, 40], [88, 3, 60, 88, 3, 60], [12] * 5]


def decoded(case: Any, prompts: Sequence[Sequence[int]], strategy: Strategy, lossless: Lossless) -> Any:
    limits = [DRAFTED] * len(prompts)
    return case.engine.decode(
        prompts, strategy, kv="recompute", max_new_tokens=limits, seeds=[3, 1, 2], lossless=lossless
    )


@pytest.mark.parametrize(("most", "head"), [(1, LM_HEAD), (4, LM_HEAD), (4, HeadChoice("int8"))])
def test_a_fixed_exit_drafts_at_its_layer_with_one_check_and_head(
    llama: Any, prompts: Any, most: int, head: HeadChoice
) -> None:
    for one in decoded(llama, prompts, Fixed(2), Lossless(most, head=head)):
        wrong = one.drafts - sum(one.accepted)
        assert wrong > 0
        for work, count in ((one.drafting, one.drafts), (one.rolled_back, wrong)):
            heads = (count, 0) if head.is_full else (0, count)
            assert work == DraftWork(count, *heads, 2 * count, count)


@in_turn(strategy=[Random(0.5), Confidence(threshold=0.2), DynamicExit()], case=["llama", "mistral", "opt"])
def test_what_verifying_read_is_what_is_left(case: Any, prompts: Any, strategy: Strategy) -> None:
    """A pass that goes deep runs every layer once, whatever waited; one without a new token, from where others wait."""
    for one in decoded(case, prompts, strategy, Lossless(16)):
        left = one.layers_read - one.drafting.layers_read
        assert left <= LAYERS * one.verifications
        assert (left == LAYERS * one.verifications) or one.finish_reason is not None
        assert one.drafting.passes == one.drafts
        assert one.rolled_back.passes == one.drafts - sum(one.accepted)
        for name in ("layers_read", "exit_checks", "lm_head_evaluations"):
            whole = getattr(one, name)
            assert getattr(one.rolled_back, name) <= getattr(one.drafting, name) <= whole


def test_what_a_source_proposes_runs_nothing(llama: Any) -> None:
    for one in decoded(llama, REPEATING, Full(), Lossless(8, (Lookup(min_n=1),))):
        assert one.drafts > 0
        assert (one.drafting, one.rolled_back) == (DraftWork(), DraftWork())
    some = decoded(llama, REPEATING, Fixed(2), Lossless(8, (Lookup(min_n=1),)))
    assert any(0 < one.drafting.passes < one.drafts for one in some)
    assert all(one.drafting.layers_read == 2 * one.drafting.passes for one in some)


ASKED = 8


@pytest.mark.slow
@in_turn(case=list(FORMS), kv=KV_POLICIES.names())
def test_the_oracle_leaves_at_the_first_layer_that_knows(
    case: Any, kv: str, prompts: list[list[int]], reference: Any
) -> None:
    done = case.engine.decode(prompts, Oracle(), kv=kv, max_new_tokens=[ASKED] * 3)
    for prompt, one in zip(prompts, done, strict=True):
        beside, layers = reference(case.reference, kv, prompt), []
        for step in range(ASKED):
            tokens = [int(logits.argmax()) for logits in beside.look()]
            asked = step > 0 or kv == "none"
            layers.append(tokens.index(tokens[-1]) + 1 if asked else case.info.num_layers)
            beside.leave(layers[-1])
        assert one.exit_layers == layers
        assert one.token_ids == beside.sequence[len(prompt) :]


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_the_oracle_is_charged_what_it_looks_at_and_what_it_rehearses(
    llama: Any, kv: str, prompts: list[list[int]]
) -> None:
    for one in llama.engine.decode(prompts, Oracle(), kv=kv, max_new_tokens=[ASKED] * 3):
        layers = one.exit_layers if kv == "none" else one.exit_layers[1:]
        asked = [min(layer, 5) for layer in layers]
        # One look per exit point, one at the full-depth token, and the output's own where no exit point served.
        assert one.exit_checks == sum(asked)
        assert one.lm_head_evaluations == sum(asked) + len(asked) + layers.count(6)
        run, waiting = 0, list[int]()
        for leaving in layers:
            run += 5 + leaving  # rehearsed once, from layer 1 to the last
            if kv == "recompute":  # both take along whoever waits; the rehearsal leaves them waiting
                run += sum(6 - depth for depth in waiting)
                run += sum(leaving - depth for depth in waiting if depth < leaving)
                waiting = [max(depth, leaving) for depth in [*waiting, leaving]]
        assert one.layers_executed == run
