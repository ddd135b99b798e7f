"""Stop rules end their own rows, at the same token in every way to decode: drafts that they end are verified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Lossless, NamedStop, RowStop, Strategy
from harness.registry import KV_POLICIES
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.random import Random

NEW, SEEDS = 12, [11, 5, 42]
SOME = Random(probability=0.4)


class Ends(RowStop):
    """Ends with one of some tokens; counts how often it is asked."""

    def __init__(self, *last: int) -> None:
        self.last, self.asked = last, 0

    def over(self, token_ids: Sequence[int]) -> bool:
        self.asked += 1
        return token_ids[-1] in self.last


class Sees(RowStop):
    """Keeps what it sees; ends where the first number of a state exceeds a least value."""

    reads_states = True

    def __init__(self, least: float = torch.inf) -> None:
        self.least = least
        self.seen: list[tuple[int, Tensor]] = []
        self.lengths: list[int] = []

    def see(self, layer: int, state: Tensor) -> None:
        self.seen.append((layer, state.clone()))

    def over(self, token_ids: Sequence[int]) -> bool:
        self.lengths.append(len(token_ids))
        return float(self.seen[-1][1][0]) > self.least


def decoded(llama: Any, prompts: list[list[int]], strategy: Strategy, rules: list[RowStop] | None, **more: Any) -> Any:
    named = None if rules is None else [NamedStop("mine", rule) for rule in rules]
    given = {"kv": "recompute", "max_new_tokens": [NEW] * len(prompts), "seeds": SEEDS[: len(prompts)], **more}
    return llama.engine.decode(prompts, strategy, rules=named, **given)


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_a_rule_ends_its_row_and_no_other(llama: Any, prompts: list[list[int]], kv: str) -> None:
    free = decoded(llama, prompts, SOME, None, kv=kv)
    last = free[1].token_ids[4]
    place = free[1].token_ids.index(last)

    made = decoded(llama, prompts, SOME, [Ends(), Ends(last), Ends()], kv=kv)

    assert [(one.finish_reason, one.stopped_by) for one in made] == [("length", ""), ("stop", "mine"), ("length", "")]
    assert [one.token_ids for one in made] == [free[0].token_ids, free[1].token_ids[: place + 1], free[2].token_ids]


@pytest.mark.parametrize("strategy", [Fixed(layer=2), SOME])
def test_a_rule_ends_a_lossless_row_where_it_ends_full_depth(
    llama: Any, prompts: list[list[int]], strategy: Strategy
) -> None:
    full = decoded(llama, prompts, Full(), None)
    last = [one.token_ids[place] for one, place in zip(full, (3, 7, 5), strict=True)]
    cut = [one.token_ids[: one.token_ids.index(token) + 1] for one, token in zip(full, last, strict=True)]

    made = decoded(llama, prompts, strategy, [Ends(token) for token in last], lossless=Lossless(most=4))

    assert [one.token_ids for one in made] == cut
    assert {(one.finish_reason, one.stopped_by) for one in made} == {("stop", "mine")}
    assert all(one.drafts > 0 for one in made)


def test_eos_the_batch_s_own_rule_and_the_row_s_are_asked_in_this_order(llama: Any, prompts: list[list[int]]) -> None:
    (free,) = decoded(llama, prompts[:1], Full(), None)
    last = free.token_ids[2]

    def end(**more: Any) -> tuple[str, str]:
        (made,) = decoded(llama, prompts[:1], Full(), [Ends(last)], **more)
        return made.finish_reason, made.stopped_by

    assert end() == ("stop", "mine")
    assert end(stop=lambda ids: ids[-1] == last) == ("stop", "")
    assert end(eos_token_ids=frozenset({last})) == ("eos", "")
    assert end(max_new_tokens=[free.token_ids.index(last) + 1]) == ("stop", "mine")


@pytest.mark.parametrize("kv", ["recompute", "propagate", "none"])
def test_a_rule_sees_what_each_token_comes_from(llama: Any, prompts: list[list[int]], kv: str) -> None:
    rules = [Sees() for _ in prompts]
    made = decoded(llama, prompts, SOME, rules, kv=kv)
    for rule, one in zip(rules, made, strict=True):
        assert [layer for layer, _ in rule.seen] == one.exit_layers
        assert rule.lengths == list(range(1, NEW + 1))
    assert {layer for rule in rules for layer, _ in rule.seen} > {llama.info.num_layers}


@pytest.mark.parametrize("lossless", [None, Lossless(most=4)])
def test_the_states_are_the_model_s(llama: Any, prompts: list[list[int]], lossless: Lossless | None) -> None:
    rules = [Sees() for _ in prompts]
    strategy = Full() if lossless is None else Fixed(layer=2)
    for prompt, rule, one in zip(
        prompts, rules, decoded(llama, prompts, strategy, rules, lossless=lossless), strict=True
    ):
        whole = llama.engine.read([*prompt, *one.token_ids[:-1]], [llama.info.num_layers])[0]
        torch.testing.assert_close(
            torch.stack([state for _, state in rule.seen]), whole[len(prompt) - 1 :], rtol=5e-3, atol=5e-3
        )


def test_a_rule_of_states_ends_a_lossless_row_where_it_ends_full_depth(llama: Any, prompts: list[list[int]]) -> None:
    """Although no exit's state was like full depth's: it was not asked while drafting."""
    watched = [Sees() for _ in prompts]
    full = decoded(llama, prompts, Full(), watched)
    for prompt, rule, one in zip(prompts, watched, full, strict=True):
        values = [float(state[0]) for _, state in rule.seen]
        least = sum(sorted(values)[-2:]) / 2  # all but the largest are below
        place = values.index(max(values))
        (made,) = decoded(llama, [prompt], Fixed(layer=2), [Sees(least)], lossless=Lossless(most=4))
        assert made.token_ids == one.token_ids[: place + 1]
        assert made.finish_reason == "stop"
