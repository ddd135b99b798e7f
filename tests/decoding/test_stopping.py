"""A strategy that ends completions: what is there stays, no token is made for it, and nobody else notices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, Lossless, ModelInfo, Strategy
from harness.registry import KV_POLICIES
from strategies.confidence import Confidence

NEW, SEEDS = 12, [11, 5, 42]


@dataclass(frozen=True)
class Stopping(Strategy):
    """Exit as confidence does; stop some rows, by their seed, at a layer once they have so many tokens."""

    after: Mapping[int, int] = field(default_factory=dict)
    layer: int = 3
    leaves_too: bool = False

    def __hash__(self) -> int:
        return id(self)

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        return _Rule(self, batch.seeds)


@dataclass(frozen=True)
class _Rule:
    options: Stopping
    seeds: tuple[int, ...]

    def should_exit(self, view: ExitView) -> Tensor:
        leaves = Confidence(threshold=0.6).should_exit(view)
        if view.exit_layer == self.options.layer:
            limits = [self.options.after.get(self.seeds[row], NEW) for row in view.rows.tolist()]
            stops = [len(made) >= limit for made, limit in zip(view.token_ids, limits, strict=True)]
            view.stop(torch.tensor(stops))
            leaves = leaves | torch.tensor([self.options.leaves_too and one for one in stops])
        return leaves


def decoded(engine: Any, prompts: list[list[int]], strategy: Strategy, kv: str, seeds: list[int] = SEEDS) -> Any:
    return engine.decode(prompts, strategy, kv=kv, max_new_tokens=[NEW] * len(prompts), seeds=seeds)


@pytest.mark.parametrize("leaves_too", [False, True])
@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_a_row_that_is_stopped_keeps_what_it_has(
    llama: Any, prompts: list[list[int]], kv: str, leaves_too: bool
) -> None:
    on = decoded(llama.engine, prompts, Stopping(), kv)
    assert {one.finish_reason for one in on} == {"length"}
    deep = {
        seed: next(n for n in range(2, NEW) if one.exit_layers[n] >= 3) for seed, one in zip(SEEDS, on, strict=True)
    }
    after = {SEEDS[0]: deep[SEEDS[0]], SEEDS[2]: deep[SEEDS[2]]}
    made = decoded(llama.engine, prompts, Stopping(after, leaves_too=leaves_too), kv)
    assert [one.finish_reason for one in made] == ["strategy", "length", "strategy"]
    for one, whole, seed in zip(made, on, SEEDS, strict=True):
        kept = after.get(seed, NEW)
        assert one.token_ids == whole.token_ids[:kept]
        assert one.exit_layers == whole.exit_layers[:kept]
        assert len(one.token_times_s) == kept
        assert one.failure is None
    for prompt, seed, row in zip(prompts, SEEDS, made, strict=True):
        (alone,) = decoded(llama.engine, [prompt], Stopping(after, leaves_too=leaves_too), kv, [seed])
        assert (alone.token_ids, alone.exit_layers, alone.finish_reason) == (
            row.token_ids, row.exit_layers, row.finish_reason,
        )  # fmt: skip
        assert (alone.layers_executed, alone.lm_head_evaluations) == (row.layers_executed, row.lm_head_evaluations)


def test_the_layers_of_the_last_check_are_counted_and_no_head(llama: Any, prompts: list[list[int]]) -> None:
    """Confidence reads the head at exits 1, 2 and 3; the row stops at the third for want of a second token."""

    @dataclass(frozen=True)
    class AtOnce(Strategy):
        def should_exit(self, view: ExitView) -> Tensor:
            stays = torch.zeros(len(view.rows), dtype=torch.bool)
            if view.exit_layer == 3:
                view.stop(~stays)
            return stays

    (one,) = decoded(llama.engine, prompts[:1], AtOnce(), "recompute", [1])
    assert (len(one.token_ids), one.finish_reason) == (1, "strategy")  # the prompt's own token
    assert (one.layers_executed, one.exit_checks, one.lm_head_evaluations) == (3, 3, 0)
    (one,) = decoded(llama.engine, prompts[:1], AtOnce(), "none", [1])  # not before the first token
    assert (len(one.token_ids), one.finish_reason, one.exit_layers) == (1, "strategy", [llama.engine.info.num_layers])


def test_lossless_completions_are_full_depth_s(llama: Any, prompts: list[list[int]]) -> None:
    after = dict.fromkeys(SEEDS, 2)
    settings: dict[str, Any] = {"kv": "recompute", "max_new_tokens": [NEW] * 3, "seeds": SEEDS}
    made = llama.engine.decode(prompts, Stopping(after), lossless=Lossless(4), **settings)
    from strategies.full import Full

    whole = llama.engine.decode(prompts, Full(), **settings)
    assert [(one.token_ids, one.finish_reason) for one in made] == [(one.token_ids, one.finish_reason) for one in whole]
