"""Many requests through few rows: each yields what it yields alone, and no row waits for another to end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from harness.contracts import Batch, ExitRule, ExitView, Lossless, ModelInfo, Strategy
from harness.decoding.engine import decode_in_turn
from harness.decoding.generation import Generation
from harness.decoding.loop import OpenBatch
from strategies.confidence import Confidence
from strategies.full import Full
from strategies.random import Random

REQUESTS = 11
LIMITS = [1 + (7 * number) % 10 for number in range(REQUESTS)]
SEEDS = [100 + number for number in range(REQUESTS)]


@pytest.fixture
def prompts(llama: Any) -> list[list[int]]:
    drawn = random.Random(0)
    return [[drawn.randrange(1, llama.info.vocab_size) for _ in range(3 + number)] for number in range(REQUESTS)]


def facts(made: Generation) -> tuple[Any, ...]:
    """Everything but the clock and, of lossless rows, what drafts cost beside others."""
    return made.token_ids, made.finish_reason, *(() if made.lossless else (made.exit_layers, made.exit_checks))


def all_of(engine: Any, prompts: Sequence[Sequence[int]], strategy: Strategy, rows: int, **settings: Any) -> list[Any]:
    made = decode_in_turn(
        engine, prompts, strategy, rows=rows, max_new_tokens=LIMITS, seeds=SEEDS, **{"kv": "recompute", **settings}
    )
    found = dict(made)
    assert sorted(found) == list(range(REQUESTS))
    return [facts(found[place]) for place in range(REQUESTS)]


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("strategy", [Full(), Confidence(threshold=0.6), Random(probability=0.3)])
@pytest.mark.parametrize(
    "settings",
    [{}, {"kv": "propagate"}, {"kv": "none"}, {"lossless": Lossless()}],
    ids=["recompute", "propagate", "no cache", "lossless"],
)
def test_each_request_yields_what_it_yields_alone(
    llama: Any, prompts: list[list[int]], strategy: Strategy, rows: int, settings: dict[str, Any]
) -> None:
    def is_over(token_ids: Sequence[int]) -> bool:
        return token_ids[-1] % 7 == 0

    found = all_of(llama.engine, prompts, strategy, rows, stop=is_over, eos_token_ids=frozenset({1}), **settings)
    for place, (prompt, limit, seed) in enumerate(zip(prompts, LIMITS, SEEDS, strict=True)):
        alone = llama.engine.decode(
            [prompt], strategy, max_new_tokens=[limit], seeds=[seed], stop=is_over, eos_token_ids=frozenset({1}),
            **{"kv": "recompute", **settings},
        )  # fmt: skip
        assert found[place] == facts(alone[0])
    assert len({one[1] for one in found}) > 1  # some were ended, others reached their limit


def test_a_row_that_ends_leaves_its_place_to_the_next_request(
    llama: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[int] = []
    step = OpenBatch.step

    def counted(batch: OpenBatch) -> None:
        running.append(len(batch.running))
        step(batch)

    monkeypatch.setattr(OpenBatch, "step", counted)
    all_of(llama.engine, prompts, Full(), 3)
    assert sum(running) == sum(limit - 1 for limit in LIMITS)  # the prompt makes a request's first token
    assert running == sorted(running, reverse=True)  # three until none waits
    closed = sum(max(LIMITS[start : start + 3]) - 1 for start in range(0, REQUESTS, 3))
    assert len(running) < closed


class Failing(Strategy):
    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        return self

    def should_exit(self, view: ExitView) -> Any:
        raise RuntimeError("this strategy cannot decide")


@pytest.mark.parametrize("rows", [1, 3])
def test_what_a_strategy_raises_reaches_the_caller(llama: Any, prompts: list[list[int]], rows: int) -> None:
    with pytest.raises(RuntimeError, match="cannot decide"):
        all_of(llama.engine, prompts, Failing(), rows)
