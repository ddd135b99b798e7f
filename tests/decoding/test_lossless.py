"""Lossless decoding yields full depth's tokens, whatever drafts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import (
    Batch,
    Draft,
    DraftRule,
    ExitView,
    HeadChoice,
    Lossless,
    ModelInfo,
    Strategy,
)
from harness.decoding.drafting import DraftSettings
from harness.decoding.drafts.lookup import Lookup
from harness.decoding.drafts.suffix import Suffix
from harness.decoding.engine import Engine
from harness.decoding.exits import AskedExits
from harness.decoding.generation import Generation
from harness.errors import OptionError
from harness.registry import STRATEGIES as REGISTERED
from strategies.clasp import Clasp
from strategies.confidence import Confidence
from strategies.dynamic_exit import DynamicExit
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.layerskip import LayerSkip
from strategies.oracle import Oracle
from strategies.random import Random
from strategies.swift import SkipsLayers, Swift
from tests.crossing import in_turn
from tests.decoding.conftest import FORMS, KINDS, LEARNED, STRATEGIES, each_kind, with_heads

NEW = 24
LAYERS = 6


def decoded(
    engine: Engine, prompts: Sequence[Sequence[int]], strategy: Strategy, most: int = 5, **settings: Any
) -> list[Generation]:
    lossless = Lossless(most, tuple(settings.pop("sources", ())))
    settings.setdefault("max_new_tokens", [NEW] * len(prompts))
    made = engine.decode(prompts, strategy, kv="recompute", lossless=lossless, **settings)
    for one in made:
        assert one.failure is None
        assert one.lossless
        assert not one.draft
        assert len(one.token_ids) == len(one.exit_layers) == len(one.drafted_at) == len(one.accepted)
        assert set(one.exit_layers) <= {engine.info.num_layers}
        assert sum(one.accepted) + sum(len(lost.token_ids) for lost in one.discarded) == one.drafts
        for lost in one.discarded:  # from the token on that full depth replaced, if it said anything there
            assert len(lost.token_ids) == len(lost.drafted_at) > 0
            assert lost.place <= len(one.token_ids)
            if lost.place < len(one.token_ids):
                assert not one.accepted[lost.place]
                assert one.drafted_at[lost.place] == lost.drafted_at[0]
                assert one.token_ids[lost.place] != lost.token_ids[0]
        assert all(at is not None for at, kept in zip(one.drafted_at, one.accepted, strict=True) if kept)
        assert one.token_times_s == sorted(one.token_times_s)
    return made


def full(engine: Engine, prompts: Sequence[Sequence[int]], **settings: Any) -> list[list[int]]:
    if not settings:
        return [list(_full_depth(engine, tuple(prompt))) for prompt in prompts]
    settings.setdefault("max_new_tokens", [NEW] * len(prompts))
    alone = [
        engine.decode([prompt], Full(), kv="recompute", **settings | {"max_new_tokens": [limit]})[0]
        for prompt, limit in zip(prompts, settings["max_new_tokens"], strict=True)
    ]
    return [one.token_ids for one in alone]


@lru_cache(maxsize=256)
def _full_depth(engine: Engine, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Most tests of a family ask for the same prompts."""
    return tuple(engine.decode([prompt], Full(), kv="recompute", max_new_tokens=[NEW])[0].token_ids)


def tokens(made: Sequence[Generation]) -> list[list[int]]:
    return [one.token_ids for one in made]


@dataclass(frozen=True)
class Always(Strategy):
    """Exit wherever it is asked."""

    points: tuple[int, ...] = (1,)

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        return self.points

    def should_exit(self, view: ExitView) -> Tensor:
        return torch.ones_like(view.rows, dtype=torch.bool)


@dataclass(frozen=True)
class Never(Always):
    """Be asked, and go on."""

    def should_exit(self, view: ExitView) -> Tensor:
        return torch.zeros_like(view.rows, dtype=torch.bool)


@dataclass(frozen=True)
class Told(DraftRule):
    """Proposes what full depth will say, with every so-many-th token wrong."""

    known: dict[tuple[int, ...], list[int]]
    wrong_every: int
    seen: list[tuple[int, int]] = field(default_factory=list)

    def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
        return self

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        there = len(draft.token_ids) + len(draft.tokens)
        rest = list(enumerate(self.known[tuple(draft.prompt)]))[there : there + max_tokens]
        wrong = {place for place, _ in rest if self.wrong_every and place % self.wrong_every == 0}
        return [(token + 1) % 97 if place in wrong else token for place, token in rest]

    def verified(self, draft: Draft, accepted: int) -> None:
        self.seen.append((len(draft.tokens), accepted))


TRIED = [
    *STRATEGIES.values(),
    Always((1,)),
    Never((1, 4)),
    Random(0.9),
    LayerSkip(2, 3),
    DynamicExit(),
    DynamicExit(every=3, decay=0.5),
    Swift(threshold=0.1, window=4),
    Swift(threshold=0, skip="1+3+4"),
    Clasp(threshold=0.2, every=1),
    Clasp(threshold=0, ratio=0.25),
]


@in_turn(rounds=2, strategy=[*TRIED, *LEARNED], case=list(FORMS), most=[1, 2, 5, 16])
def test_what_comes_out_is_full_depth_s(
    case: Any, prompts: list[list[int]], strategy: Strategy | str, most: int, learned: Any
) -> None:
    """Alone, and in a batch that rows leave in mid-draft; every layer runs once, and again for what is discarded."""
    expected = full(case.engine, prompts)
    drafting = learned(strategy, case.info) if isinstance(strategy, str) else strategy
    for batch, limits in ((prompts[:1], [NEW]), (prompts, [3, NEW, 9])):
        made = decoded(case.engine, batch, drafting, most, seeds=[3, 4, 5][: len(batch)], max_new_tokens=limits)
        assert tokens(made) == [one[:limit] for one, limit in zip(expected, limits, strict=False)]
        # But for rehearsals, and drafts that do not wait with their states: see ``test_skipped_layers.py``.
        for one in made if not isinstance(drafting, Oracle | SkipsLayers) else ():
            assert one.layers_executed == (len(one.token_ids) - 1) * LAYERS + one.layers_discarded


@dataclass(frozen=True)
class WrongAt(Told):
    """Proposes so many tokens at once, one of them wrong, and notes what stood."""

    length: int = 8
    wrong: int = 0

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        there = len(draft.token_ids)
        assert max_tokens == min(LONGEST, NEW - there - 1), "the verification says one token more"
        rest = self.known[tuple(draft.prompt)][there : there + min(self.length, max_tokens)]
        return [(token + 1) % 97 if place == self.wrong else token for place, token in enumerate(rest)]


LONGEST = 12


@pytest.mark.parametrize("length", [1, 2, 7, LONGEST])
@each_kind
def test_a_draft_stands_up_to_its_first_wrong_token_wherever_that_is(
    case: Any, prompts: list[list[int]], length: int
) -> None:
    """Of drafts of every kind of length, at each place, alone and beside rows whose drafts are wrong elsewhere."""
    expected = full(case.engine, prompts)
    known = dict(zip(map(tuple, prompts), expected, strict=True))
    for wrong in range(length + 1):  # the last: none is wrong
        rule = WrongAt(known, 0, [], length, wrong)
        made = decoded(case.engine, prompts, Full(), most=LONGEST, sources=[rule])
        assert tokens(made) == expected
        for drafted, accepted in rule.seen:
            assert accepted == min(wrong, drafted)
        assert (length, min(wrong, length)) in rule.seen
        for one in made:  # full depth's own token follows what stood
            assert len(one.token_ids) == 1 + sum(one.accepted) + one.verifications - _ended_by_a_draft(one)


def _ended_by_a_draft(made: Generation) -> int:
    """Verifications that said no token of their own: a draft's last one was the completion's."""
    return int(made.accepted[-1])


def test_every_registered_strategy_is_tried() -> None:
    """But for what the engine does not run, and for what ends completions, which is tried as it ships."""
    tried = {type(one) for one in TRIED} | {REGISTERED.load(name) for name in (*LEARNED, "sec", "endpoint")}
    assert {REGISTERED.load(name) for name in REGISTERED.names()} == tried - {Always, Never}


def test_drafts_are_neither_always_right_nor_always_wrong(llama: Any, prompts: list[list[int]]) -> None:
    """Else the tests above would not see a draft that is not rolled back."""
    made = decoded(llama.engine, prompts, Fixed(5))
    assert any(any(one.accepted) for one in made)
    assert any(one.layers_discarded for one in made)


@dataclass(frozen=True)
class AllButTheFirst(Always):
    """Exit wherever it is asked about another row than the first."""

    def should_exit(self, view: ExitView) -> Tensor:
        return view.rows > 0


@in_turn(case=KINDS, strategy=[Always((2,)), AllButTheFirst((2,))], probabilities=[False, True, True])
def test_lossy_rows_and_lossless_ones_decode_together(
    case: Any, prompts: list[list[int]], probabilities: bool, strategy: Strategy
) -> None:
    """As on a server: the one that verifies takes along what waits of the other."""
    engine, row = case.engine, len(prompts) - 1
    tally = [Generation() for _ in prompts]
    rule = strategy.start(case.info, Batch((0, 0, 0), "cpu"))
    batch = engine.open(len(prompts), 64, "recompute", AskedExits(rule, (2,), tally), tally)
    for place, prompt in enumerate(prompts):
        batch.join(place, prompt, NEW, lossless=None if place == row else DraftSettings(3))
    batch.prefill(range(len(prompts)))
    batch.with_log_probabilities = probabilities
    while batch.running:
        batch.step()
    assert tokens(tally[:row]) == full(engine, prompts[:row])
    assert {len(one.log_probabilities) for one in tally} == {NEW - 1 if probabilities else 0}
    alone = engine.decode(prompts[row:], Always((2,)), kv="recompute", max_new_tokens=[NEW])
    assert tokens(tally[row:]) == tokens(alone)
    assert (tally[row].lossless, tally[row].drafts, tally[row].accepted) == (False, 0, [])


def test_the_oracle_s_drafts_all_stand(llama: Any, prompts: list[list[int]]) -> None:
    for one in decoded(llama.engine, prompts, Oracle(), most=4):
        assert one.drafts == sum(one.accepted) > 0
        assert one.layers_discarded == 0


def test_known_exits_draft_as_they_did(llama: Any, prompts: list[list[int]]) -> None:
    """A rehearsed strategy is replayed inside the window; accepted drafts are recorded where they were made."""
    first = decoded(llama.engine, prompts, Oracle(), most=4)
    layers = [one.first_stops(LAYERS) for one in first]
    again = llama.engine.replay(
        prompts, layers, kv="recompute", max_new_tokens=[NEW] * len(prompts), lossless=Lossless(4)
    )
    assert [one.token_ids for one in again] == tokens(first)
    assert [one.accepted for one in again] == [one.accepted for one in first]
    assert [one.layers_executed for one in again] == [(NEW - 1) * LAYERS] * len(prompts)


@in_turn(case=list(FORMS), wrong_every=[0, 2, 3, 7], strategy=[Full(), Random(0.5), Always((2,))])
def test_a_source_proposes_and_full_depth_decides(
    case: Any, prompts: list[list[int]], strategy: Strategy, wrong_every: int
) -> None:
    expected = full(case.engine, prompts)
    known = {tuple(prompt): made for prompt, made in zip(prompts, expected, strict=True)}
    source = Told(known, wrong_every)
    made = decoded(case.engine, prompts, strategy, 4, sources=[source])
    assert tokens(made) == expected
    assert all(0 <= accepted <= length <= 4 for length, accepted in source.seen)
    if not wrong_every:
        assert all(accepted == length for length, accepted in source.seen)
    elif strategy == Full():
        assert any(accepted < length for length, accepted in source.seen)


def test_proposals_cost_few_passes(llama: Any, prompts: list[list[int]]) -> None:
    prompt, expected = prompts[0], full(llama.engine, prompts[:1])
    (one,) = decoded(llama.engine, [prompt], Full(), 5, sources=[Told({tuple(prompt): expected[0]}, 0)])
    assert one.verifications == -(-(NEW - 1) // 6)  # the first token is prefill's; five and one each after it
    assert one.layers_executed == (NEW - 1) * LAYERS
    assert one.drafted_at[1:7] == [0, 0, 0, 0, 0, None]


@in_turn(
    rounds=2,
    strategy=[Full(), Always((1,)), Always((3,)), Random(0.6), Fixed(5)],
    place=[0, 1, 2, 5, 9],
    proposed=[False, True],
)
def test_a_completion_ends_where_full_depth_s_does(
    llama: Any, prompts: list[list[int]], strategy: Strategy, place: int, proposed: bool
) -> None:
    """At an end token, by a stop rule, at the limit: in a draft, at what replaces one, after one."""
    expected = full(llama.engine, prompts)
    known = {tuple(prompt): made for prompt, made in zip(prompts, expected, strict=True)}
    sources = [Told(known, 4)] if proposed else []
    for row, prompt in enumerate(prompts[:2]):
        last = expected[row][place]
        first = expected[row].index(last) + 1
        settings: dict[str, Any]
        for settings, reason, count in (
            ({"eos_token_ids": frozenset({last})}, "eos", first),
            ({"stop": lambda made, last=last: made[-1] == last}, "stop", first),
            ({"max_new_tokens": [place + 1]}, "length", place + 1),
        ):
            (one,) = decoded(llama.engine, [prompt], strategy, 4, sources=sources, **settings)
            assert (one.token_ids, one.finish_reason) == (expected[row][:count], reason)


def test_a_draft_that_seems_to_end_goes_on_where_it_is_replaced(llama: Any, prompts: list[list[int]]) -> None:
    """Every token that an exit drafts and full depth does not say ends a completion."""
    expected = full(llama.engine, prompts)
    for row, prompt in enumerate(prompts):
        drafted = set(range(97)) - set(expected[row])
        made = decoded(llama.engine, [prompt], Always((1,)), 4, eos_token_ids=frozenset(drafted))
        assert tokens(made) == [expected[row]]


@pytest.mark.parametrize("by", ["stop", "eos_token_ids"])
def test_nothing_is_proposed_from_the_end_on(llama: Any, prompts: list[list[int]], by: str) -> None:
    for prompt, said in zip(prompts, full(llama.engine, prompts), strict=True):
        end = next(place for place, token in enumerate(said) if place > 3 and token not in said[:place])
        ending = {"stop": lambda ids, last=said[end]: ids[-1] == last, "eos_token_ids": frozenset({said[end]})}[by]
        rule = Told({tuple(prompt): said}, 0)
        (one,) = decoded(llama.engine, [prompt], Full(), 16, sources=[rule], **{by: ending})
        assert one.token_ids == said[: end + 1]
        assert rule.seen[-1][0] == rule.seen[-1][1] < 16, "the verification says the last token itself"
        assert one.drafts == sum(one.accepted)


@each_kind
def test_the_last_position_can_be_reached(case: Any) -> None:
    reach = case.info.max_positions
    prompt = [5 + i % 50 for i in range(reach - 6)]
    expected = full(case.engine, [prompt], max_new_tokens=[6])
    for strategy, sources in ((Always((1,)), []), (Random(0.7), []), (Full(), [Lookup(min_n=1)]), (Full(), [Suffix()])):
        (one,) = decoded(case.engine, [prompt], strategy, 16, max_new_tokens=[6], sources=sources)
        assert [one.token_ids] == expected
        assert one.drafts


@in_turn(
    case=list(FORMS),
    strategy=[
        *(Always((1,)), Random(0.6), Fixed(5), Confidence(0.3), Full()),
        *(Swift(threshold=0.1, window=4), Clasp(threshold=0.2, every=1)),
    ],
    wrong_every=[3, None, 5, None],
)
def test_keys_and_values_are_those_of_a_run_that_never_drafted(
    case: Any, prompts: list[list[int]], strategy: Strategy, wrong_every: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {tuple(prompt): made for prompt, made in zip(prompts, full(case.engine, prompts), strict=True)}
    sources = [] if wrong_every is None else [Told(known, wrong_every)]
    caches: list[Any] = []
    make = case.engine.cache
    monkeypatch.setattr(case.engine, "cache", lambda *sizes: caches.append(make(*sizes)) or caches[-1])
    drafted = decoded(case.engine, prompts, strategy, 4, seeds=[0, 1, 2], sources=sources)
    plain = case.engine.decode(prompts, Full(), kv="recompute", max_new_tokens=[NEW] * len(prompts))
    assert tokens(drafted) == [one.token_ids for one in plain]
    for row, prompt in enumerate(prompts):
        # A row that ended with an accepted draft never ran the last tokens of it, as full depth never runs its last.
        end = len(prompt) + NEW - 1
        # Another token's would be off by their own size; rounding is not, with rows beside one another.
        written, expected = (cache.entries[:, row, :, :end] for cache in caches)
        torch.testing.assert_close(written, expected, rtol=1e-3, atol=2e-5 * float(expected.abs().max()))


def test_a_proposal_beyond_the_vocabulary_is_refused(llama: Any, prompts: list[list[int]]) -> None:
    class Wild(DraftRule):
        def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
            return self

        def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
            return [97]

    lossless = Lossless(sources=(Wild(),))
    with pytest.raises(OptionError, match=r"Wild proposed \[97\]"):
        llama.engine.decode(prompts, Full(), kv="recompute", max_new_tokens=[5] * 3, lossless=lossless)


@pytest.mark.slow
@in_turn(case=KINDS, strategy=[Always((5,)), Random(0.6), Confidence(0.3), Oracle()])
def test_drafts_may_be_read_by_a_cheap_head(
    case: Any, prompts: list[list[int]], strategy: Strategy, tmp_path: Path
) -> None:
    """What it gets wrong, of half the vocabulary, is replaced; who has the LM head's logits drafts by those."""
    lossless = Lossless(4, head=HeadChoice("shortlist", 48))
    made = with_heads(case, tmp_path).decode(
        prompts, strategy, kv="recompute", max_new_tokens=[NEW] * len(prompts), lossless=lossless, seeds=[0, 1, 2]
    )
    assert tokens(made) == full(case.engine, prompts)
    looks = isinstance(strategy, Confidence | Oracle)
    for one in made:
        assert one.cheap_head_tokens == one.cheap_head_evaluations == (0 if looks else one.drafts)
        verified = NEW - 1 + one.layers_discarded // LAYERS
        assert looks or one.lm_head_evaluations == verified
