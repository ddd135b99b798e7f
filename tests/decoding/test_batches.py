"""A batch of n is n batches of one, however its rows differ; and recorded exits replay the run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from harness.contracts import Strategy
from harness.decoding.generation import Generation
from harness.registry import KV_POLICIES
from strategies.confidence import Confidence
from strategies.entropy import Entropy
from strategies.fixed import Fixed
from strategies.free import Free
from strategies.full import Full
from strategies.margin import Margin
from strategies.oracle import Oracle
from strategies.patience import Patience
from strategies.pruned import Pruned
from strategies.random import Random
from strategies.saturation import Saturation
from strategies.schedule import Schedule
from strategies.shortlist import Shortlist

NEW = 12
SEEDS = [11, 5, 42]

STRATEGIES: dict[str, Strategy] = {
    "full": Full(),
    "fixed": Fixed(layer=3),
    "random": Random(probability=0.3),
    "oracle": Oracle(),
    "confidence": Confidence(threshold=0.6),
    "margin": Margin(threshold=0.5, decay=2.0),
    "entropy": Entropy(threshold=0.3),
    "saturation": Saturation(threshold=0.8),
    "patience": Patience(patience=2),
    "schedule": Schedule(first=5, last=2, horizon=8),
    "free": Free(layer=3, threshold=0.3, posterior=0.5, every=2),
    "pruned": Pruned(layers=2),
    "shortlist": Shortlist(threshold=0.8, size=8),
    "shortlist, patience": Shortlist("patience", size=8, token="full"),
}


def facts(one: Generation) -> tuple[Any, ...]:
    """Everything but the clock."""
    return (
        one.token_ids,
        one.exit_layers,
        one.finish_reason,
        one.exit_checks,
        one.lm_head_evaluations,
        one.layers_executed,
        one.kv_fill_layers,
    )


def one_by_one(engine: Any, prompts: list[list[int]], strategy: Strategy, limits: list[int], **more: Any) -> list[Any]:
    rows = zip(prompts, limits, SEEDS, strict=True)
    return [
        facts(engine.decode([prompt], strategy, max_new_tokens=[limit], seeds=[seed], **more)[0])
        for prompt, limit, seed in rows
    ]


@pytest.mark.parametrize("kv", KV_POLICIES.names())
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_batch_is_its_rows(llama: Any, name: str, kv: str, prompts: list[list[int]]) -> None:
    strategy, limits = STRATEGIES[name], [NEW, 5, 9]
    together = llama.engine.decode(prompts, strategy, kv=kv, max_new_tokens=limits, seeds=SEEDS)
    if name not in (
        "full",
        "fixed",
        "free",
        "pruned",
    ):  # in a batch whose rows all leave together there is little to get wrong
        assert len({layer for one in together for layer in one.exit_layers[1:]}) > 2
    assert [len(one.token_ids) for one in together] == limits
    assert [facts(one) for one in together] == one_by_one(llama.engine, prompts, strategy, limits, kv=kv)


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_a_batch_is_its_rows_in_every_family(case: Any, kv: str, prompts: list[list[int]]) -> None:
    strategy = Random(probability=0.3)
    together = case.engine.decode(prompts, strategy, kv=kv, max_new_tokens=[NEW] * 3, seeds=SEEDS)
    assert [facts(one) for one in together] == one_by_one(case.engine, prompts, strategy, [NEW] * 3, kv=kv)


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_the_order_of_rows_does_not_matter(llama: Any, kv: str, prompts: list[list[int]]) -> None:
    strategy = Random(probability=0.3)
    there = llama.engine.decode(prompts, strategy, kv=kv, max_new_tokens=[NEW] * 3, seeds=SEEDS)
    back = llama.engine.decode(prompts[::-1], strategy, kv=kv, max_new_tokens=[NEW] * 3, seeds=SEEDS[::-1])
    assert [facts(one) for one in there] == [facts(one) for one in reversed(back)]


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_rows_that_end_early_leave_the_others_alone(llama: Any, kv: str, prompts: list[list[int]]) -> None:
    strategy = Random(probability=0.3)
    free = llama.engine.decode(prompts, strategy, kv=kv, max_new_tokens=[NEW] * 3, seeds=SEEDS)
    # The middle row meets an end-of-sequence token, the first a stop rule, the last its limit.
    middle, first = free[1].token_ids, free[0].token_ids
    eos = frozenset({next(token for token in middle[2:] if token not in first + free[2].token_ids)})
    cut = first[:6]
    ends: dict[str, Any] = {"kv": kv, "eos_token_ids": eos, "stop": lambda tokens: list(tokens) == cut}

    together = llama.engine.decode(prompts, strategy, max_new_tokens=[NEW] * 3, seeds=SEEDS, **ends)

    assert [one.finish_reason for one in together] == ["stop", "eos", "length"]
    assert together[0].token_ids == cut
    assert together[1].token_ids == middle[: middle.index(*eos) + 1]
    assert together[2].token_ids == free[2].token_ids
    assert [facts(one) for one in together] == one_by_one(llama.engine, prompts, strategy, [NEW] * 3, **ends)


def test_an_end_of_sequence_token_counts_before_the_stop_rule_and_the_limit(
    llama: Any, prompts: list[list[int]]
) -> None:
    token = llama.engine.decode(prompts[:1], Full(), kv="propagate", max_new_tokens=[1])[0].token_ids[0]

    def end(**more: Any) -> str:
        done = llama.engine.decode(prompts[:1], Full(), kv="propagate", max_new_tokens=[1], **more)
        assert done[0].token_ids == [token]
        return str(done[0].finish_reason)

    assert end(eos_token_ids=frozenset({token}), stop=lambda tokens: True) == "eos"
    assert end(stop=lambda tokens: True) == "stop"
    assert end(stop=lambda tokens: False) == "length"


@pytest.mark.parametrize("kv", KV_POLICIES.names())
@pytest.mark.parametrize("name", ["random", "confidence", "oracle", "full"])
def test_recorded_exits_replay_the_run(llama: Any, name: str, kv: str, prompts: list[list[int]]) -> None:
    limits = [NEW, 5, 9]
    run = llama.engine.decode(prompts, STRATEGIES[name], kv=kv, max_new_tokens=limits, seeds=SEEDS)
    again = llama.engine.replay(prompts, [one.exit_layers for one in run], kv=kv, max_new_tokens=limits)
    assert [one.token_ids for one in again] == [one.token_ids for one in run]
    assert [one.exit_layers for one in again] == [one.exit_layers for one in run]
    assert [one.exit_checks for one in again] == [0, 0, 0]
    # One evaluation per token is left: the output's own; with a cache, prefill's is not counted.
    outputs = [limit if kv == "none" else limit - 1 for limit in limits]
    assert [one.lm_head_evaluations for one in again] == outputs


def test_times_rise_from_the_start_of_the_batch(llama: Any, prompts: list[list[int]]) -> None:
    done = llama.engine.decode(prompts, Fixed(layer=2), kv="propagate", max_new_tokens=[8] * 3)
    for one in done:
        assert len(one.token_times_s) == len(one.token_ids) == 8
        assert one.token_times_s[0] > 0
        assert all(a < b for a, b in itertools.pairwise(one.token_times_s))


def test_one_engine_decodes_again_as_the_first_time(
    llama: Any, prompts: list[list[int]], make_case: Callable[..., Any]
) -> None:
    fresh = make_case("llama").engine
    options: dict[str, Any] = {"kv": "recompute", "max_new_tokens": [NEW] * 3, "seeds": SEEDS}
    runs = [
        [facts(one) for one in engine.decode(prompts, Random(), **options)] for engine in (fresh, fresh, llama.engine)
    ]
    assert runs[0] == runs[1] == runs[2]
