"""Stop rules and strategies end their own rows, at the same token in every way to decode; ended drafts are verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, Lossless, ModelInfo, NamedStop, RowStop, Strategy
from harness.registry import KV_POLICIES
from strategies.confidence import Confidence
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.random import Random
from tests.crossing import in_turn

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

    made = decoded(llama, prompts, strategy, [Ends(token) for token in last], lossless=Lossless(draft_max=4))

    assert [one.token_ids for one in made] == cut
    assert {(one.finish_reason, one.stopped_by) for one in made} == {("stop", "mine")}
    assert all(one.drafts > 0 for one in made)


def test_a_drafted_end_is_verified_at_once(llama: Any, prompts: list[list[int]]) -> None:
    prompt, lossless = prompts[:1], Lossless(draft_max=4)
    (free,) = decoded(llama, prompt, Fixed(layer=5), None, lossless=lossless)
    place = free.accepted.index(True)
    (made,) = decoded(llama, prompt, Fixed(layer=5), [Ends(free.token_ids[place])], lossless=lossless)
    assert made.token_ids == free.token_ids[: place + 1]
    assert made.drafts == sum(len(one.token_ids) for one in free.discarded if one.place < place) + 1  # none behind it


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


@pytest.mark.parametrize("lossless", [None, Lossless(draft_max=4)])
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
        (made,) = decoded(llama, [prompt], Fixed(layer=2), [Sees(least)], lossless=Lossless(draft_max=4))
        assert made.token_ids == one.token_ids[: place + 1]
        assert made.finish_reason == "stop"


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


def ended(engine: Any, prompts: list[list[int]], strategy: Strategy, kv: str, seeds: list[int] = SEEDS) -> Any:
    return engine.decode(prompts, strategy, kv=kv, max_new_tokens=[NEW] * len(prompts), seeds=seeds)


@in_turn(rounds=2, kv=KV_POLICIES.names(), leaves_too=[False, True])
def test_a_row_that_is_stopped_keeps_what_it_has(
    llama: Any, prompts: list[list[int]], kv: str, leaves_too: bool
) -> None:
    on = ended(llama.engine, prompts, Stopping(), kv)
    assert {one.finish_reason for one in on} == {"length"}
    deep = {
        seed: next(n for n in range(2, NEW) if one.exit_layers[n] >= 3) for seed, one in zip(SEEDS, on, strict=True)
    }
    after = {SEEDS[0]: deep[SEEDS[0]], SEEDS[2]: deep[SEEDS[2]]}
    made = ended(llama.engine, prompts, Stopping(after, leaves_too=leaves_too), kv)
    assert [one.finish_reason for one in made] == ["strategy", "length", "strategy"]
    for one, whole, seed in zip(made, on, SEEDS, strict=True):
        kept = after.get(seed, NEW)
        assert one.token_ids == whole.token_ids[:kept]
        assert one.exit_layers == whole.exit_layers[:kept]
        assert len(one.token_times_s) == kept
        assert one.failure is None
    for prompt, seed, row in zip(prompts, SEEDS, made, strict=True):
        (alone,) = ended(llama.engine, [prompt], Stopping(after, leaves_too=leaves_too), kv, [seed])
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

    (one,) = ended(llama.engine, prompts[:1], AtOnce(), "recompute", [1])
    assert (len(one.token_ids), one.finish_reason) == (1, "strategy")  # the prompt's own token
    assert (one.layers_executed, one.exit_checks, one.lm_head_evaluations) == (3, 3, 0)
    (one,) = ended(llama.engine, prompts[:1], AtOnce(), "none", [1])  # not before the first token
    assert (len(one.token_ids), one.finish_reason, one.exit_layers) == (1, "strategy", [llama.engine.info.num_layers])


def test_lossless_completions_are_full_depth_s(llama: Any, prompts: list[list[int]]) -> None:
    after = dict.fromkeys(SEEDS, 2)
    settings: dict[str, Any] = {"kv": "recompute", "max_new_tokens": [NEW] * 3, "seeds": SEEDS}
    made = llama.engine.decode(prompts, Stopping(after), lossless=Lossless(4), **settings)
    whole = llama.engine.decode(prompts, Full(), **settings)
    assert [(one.token_ids, one.finish_reason) for one in made] == [(one.token_ids, one.finish_reason) for one in whole]
