"""The oracle gives full depth's tokens from the least layers, by brute force over transformers' exits."""

from __future__ import annotations

from typing import Any

import pytest

from harness.registry import KV_POLICIES
from strategies.oracle import Oracle

NEW = 8


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_the_oracle_leaves_at_the_first_layer_that_knows(
    case: Any, kv: str, prompts: list[list[int]], reference: Any
) -> None:
    done = case.engine.decode(prompts, Oracle(), kv=kv, max_new_tokens=[NEW] * 3)
    for prompt, one in zip(prompts, done, strict=True):
        beside, layers = reference(case.reference, kv, prompt), []
        for step in range(NEW):
            tokens = [int(logits.argmax()) for logits in beside.look()]
            asked = step > 0 or kv == "none"
            layers.append(tokens.index(tokens[-1]) + 1 if asked else case.info.num_layers)
            beside.leave(layers[-1])
        assert one.exit_layers == layers
        assert one.token_ids == beside.sequence[len(prompt) :]


@pytest.mark.parametrize(
    "kv",
    [
        "propagate",
        "skip",
        "none",
    ],
)
def test_the_layers_a_rehearsal_runs_are_charged(llama: Any, kv: str, prompts: list[list[int]]) -> None:
    done = llama.engine.decode(prompts, Oracle(), kv=kv, max_new_tokens=[NEW] * 3)
    for one in done:
        asked = one.exit_layers if kv == "none" else one.exit_layers[1:]
        # Every token is rehearsed once, from the first exit point: from layer 1 through the five others.
        assert one.layers_executed == sum(asked) + 5 * len(asked)


def test_a_rehearsal_under_recompute_takes_along_whoever_waits_and_leaves_them_waiting(
    llama: Any, prompts: list[list[int]]
) -> None:
    done = llama.engine.decode(prompts, Oracle(), kv="recompute", max_new_tokens=[NEW] * 3)
    for one in done:
        layers, waiting = 0, list[int]()
        for leaving in one.exit_layers[1:]:
            layers += 5 + sum(6 - depth for depth in waiting)  # rehearsed from layer 1 to the last
            layers += leaving + sum(leaving - depth for depth in waiting if depth < leaving)
            waiting = [max(depth, leaving) for depth in [*waiting, leaving]]
        assert one.layers_executed == layers
