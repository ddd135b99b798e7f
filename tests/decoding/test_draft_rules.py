"""Draft rules: what they propose, where they end drafts, by hand, and what the engine tells them."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from harness.contracts import (
    Batch,
    Draft,
    DraftRule,
    DraftView,
    Lossless,
    ModelInfo,
    NamedStop,
    PlannedRule,
    RowStop,
    Strategy,
    UnitCosts,
)
from harness.decoding.drafts.expected import Expected
from harness.decoding.drafts.lookup import Lookup
from harness.decoding.drafts.product import Product
from harness.decoding.drafts.recycling import Recycling
from harness.decoding.generation import Generation
from harness.errors import OptionError
from harness.registry import DRAFTS
from strategies.confidence import Confidence
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.layerskip import LayerSkip
from strategies.oracle import Oracle
from strategies.random import Random
from tests.crossing import in_turn

NEW = 24
BATCH = Batch((0,), "cpu")
INFO = ModelInfo(
    "model", "llama", 10, 8, 97, (2, 4, 8), 100, "float32", "random", 1, 1, 1, 1,
    unit_costs=lambda: UnitCosts(layer=1, head=3, shortcut=1, source="this test"),
)  # fmt: skip


def ends(rule: DraftRule, probabilities: Sequence[float], layer: int = 2) -> int | None:
    """After how many of the tokens it ends the draft."""
    for count in range(1, len(probabilities) + 1):
        draft = Draft(0, [1], [2], [5] * count, [layer] * count, list(probabilities[:count]))
        if rule.verify_now(draft):
            return count
    return None


@pytest.mark.parametrize(
    ("bound", "probabilities", "after"),
    [
        (0.5, [0.9, 0.8, 0.7, 0.6], 4),  # .9, .72, .504, .3024
        (0.6, [0.9, 0.8, 0.7, 0.6], 3),
        (0.95, [0.9, 0.8], 1),
        (0.5, [0.5], None),  # not below
        (0, [0.1, 0.1, 0.1], None),
        (1, [1.0, 1.0, 0.99], 3),
    ],
)
def test_a_product_ends_where_it_falls_below(bound: float, probabilities: list[float], after: int | None) -> None:
    assert ends(Product(bound).start(INFO, BATCH), probabilities) == after


@pytest.mark.parametrize(
    ("layer", "probabilities", "after"),
    [
        # Full depth costs 10 + 3; a token after two layers 2 + 3 + 1 = 6, after eight 12.
        (2, [0.9, 0.9, 0.9, 0.9, 0.9], 3),  # .81/6 > 1.9/19; .729/6 = .1215 > 2.71/25 = .1084; .656/6 < 3.439/31
        (2, [0.7, 0.7], 1),  # .49/6 = .0817 < 1.7/19 = .0895
        (2, [0.8, 0.8, 0.8], 2),  # .64/6 = .1067 > 1.8/19 = .0947; .512/6 = .0853 < 2.44/25 = .0976
        (8, [0.9, 0.9], 1),  # .81/12 = .0675 < 1.9/25 = .076
        (2, [1.0] * 9, None),
        (2, [0.9, 0.1, 0.9], 2),  # the latest token stands for the next one
    ],
)
def test_a_draft_ends_where_one_more_token_would_not_pay(
    layer: int, probabilities: list[float], after: int | None
) -> None:
    assert ends(Expected().start(INFO, BATCH), probabilities, layer) == after


@pytest.mark.parametrize(
    ("changed", "after"),
    [
        ({}, 2),  # of .8: .64/6 = .1067 > 1.8/19; .512/6 = .0853 < 2.44/25 = .0976
        ({"draft_head": 1}, 3),  # 1 + 2 + 1 = 4: .512/4 = .128 > 2.44/21 = .1162; .4096/4 = .1024 < 2.952/25 = .1181
        ({"draft_head": 1, "check": 2, "asked_at": (1, 2, 4)}, 1),  # 4 + 2·2 = 8: .64/8 = .08 < 1.8/21 = .0857
        ({"draft_head": 1, "check": 2, "asked_at": (2, 4)}, 2),  # 6 again: .0853 < .0976
        ({"draft_head": 1, "layer_row": 0.25, "head_row": 2}, 1),  # 4 + 8·.25 + 2 = 8
    ],
)
def test_what_drafting_costs_decides_its_length(changed: dict[str, Any], after: int) -> None:
    costs = dataclasses.replace(INFO.costs, **changed)
    rule = Expected().start(dataclasses.replace(INFO, unit_costs=lambda: costs), BATCH)
    assert ends(rule, [0.8] * 9) == after


@dataclass(frozen=True)
class Noted(DraftRule):
    """Notes what it is told, and proposes what it is given."""

    proposed: tuple[int, ...] = ()
    drafts: list[Draft] = field(default_factory=list)
    lengths: list[tuple[int, int]] = field(default_factory=list)

    def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
        return self

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        return self.proposed if len(draft.tokens) == 2 else ()

    def verified(self, draft: Draft, accepted: int) -> None:
        self.lengths.append((len(draft.tokens), accepted))
        self.drafts.append(copy.deepcopy(draft))


@dataclass(frozen=True)
class Beside(Noted):
    """Proposes two tokens in the first row, and notes what each row is told of the others."""

    told: list[tuple[int, int]] = field(default_factory=list)

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        self.told.append((draft.row, draft.beside))
        return (5, 6)[:max_tokens] if draft.row == 0 else ()


def test_a_rule_is_told_how_many_tokens_of_others_its_pass_takes_along(llama: Any, prompts: list[list[int]]) -> None:
    rule = Beside()
    decoded(llama, prompts, Full(), rule)
    assert rule.told[:3] == [(0, 2), (1, 4), (2, 4)]
    alone = Beside()
    decoded(llama, prompts[:1], Full(), alone)
    assert {beside for _, beside in alone.told} == {0}


class Needing(Noted):
    needs_probabilities: ClassVar[bool] = True


def decoded(case: Any, prompts: Sequence[Sequence[int]], strategy: Strategy, *sources: Any, most: int = 5) -> Any:
    made = case.engine.decode(
        prompts, strategy, kv="recompute", max_new_tokens=[NEW] * len(prompts), seeds=list(range(len(prompts))),
        lossless=Lossless(most, sources),
    )  # fmt: skip
    plain = case.engine.decode(prompts, Full(), kv="recompute", max_new_tokens=[NEW] * len(prompts))
    assert [one.token_ids for one in made] == [one.token_ids for one in plain]
    return made


def test_a_rule_is_told_each_drafted_token_s_probability(llama: Any, prompts: list[list[int]]) -> None:
    rule = Needing()
    decoded(llama, prompts, Random(0.6), rule)
    assert any(len(draft.tokens) > 1 for draft in rule.drafts)
    assert all(len(draft.probabilities) == len(draft.tokens) for draft in rule.drafts)
    assert all(0 < chance <= 1 for draft in rule.drafts for chance in draft.probabilities)


@pytest.mark.parametrize("strategy", [Fixed(3), LayerSkip(3, 4)], ids=str)
def test_the_probability_is_that_of_the_exit_s_head(llama: Any, prompts: list[list[int]], strategy: Strategy) -> None:
    """Against whole sequences read once: of accepted places, whose beginnings are known."""
    rule = Needing()
    decoded(llama, prompts, strategy, rule)
    compared = 0
    for draft, (_, accepted) in zip(rule.drafts, rule.lengths, strict=True):
        text = [*draft.prompt, *draft.token_ids]
        (state,) = llama.engine.read(text, [3])
        chances = llama.engine.backbone.logits(state).softmax(-1).amax(-1)
        first = len(text) - accepted - 2
        for place in range(accepted):
            assert draft.probabilities[place] == pytest.approx(float(chances[first + place]), abs=1e-4)
            compared += 1
    assert compared > 5


def test_what_a_source_proposes_has_no_probability(llama: Any, prompts: list[list[int]]) -> None:
    rule = Needing((7, 8))
    decoded(llama, prompts[:1], Fixed(5), rule)
    both = [draft for draft in rule.drafts if 0 in draft.layers]
    assert both
    for draft in both:
        assert draft.layers == (5, 5, 0, 0)
        assert len(draft.probabilities) == 2


@pytest.mark.parametrize(("length", "most"), [(1, 16), (7, 16), (7, 3)])
def test_layerskip_drafts_as_many_tokens_as_it_says_and_a_run_allows(
    llama: Any, prompts: list[list[int]], length: int, most: int
) -> None:
    rule = Noted()
    (made,) = decoded(llama, prompts[:1], LayerSkip(4, length), rule, most=most)
    there = 1  # prefill's
    for draft in rule.drafts:
        assert len(draft.tokens) == min(length, most, NEW - there)
        assert not draft.probabilities  # no rule needs them
        there = len(draft.token_ids)
    assert made.drafts == sum(drafted for drafted, _ in rule.lengths)
    assert {at for at in made.drafted_at if at is not None} == {4}


@pytest.mark.slow
@in_turn(rounds=2, rule=[Product(0.5), Product(0.9), Expected()], strategy=[Fixed(3), Random(0.7), Confidence(0.2)])
def test_drafts_end_where_the_rule_alone_says(
    llama: Any, prompts: list[list[int]], strategy: Strategy, rule: Any
) -> None:
    noted, alone = Needing(), rule.start(llama.info, BATCH)
    decoded(llama, prompts, strategy, noted, rule, most=8)
    assert any(len(draft.tokens) > 1 for draft in noted.drafts)
    for draft in noted.drafts:
        for count in range(1, len(draft.tokens)):
            first = {name: getattr(draft, name)[:count] for name in ("tokens", "layers", "probabilities")}
            assert not alone.verify_now(dataclasses.replace(draft, **first))


# ------------------------------------------------------------------ watching a verification


@dataclass(frozen=True)
class Watching(Noted):
    """Watches verifications, and keeps what it saw until it knows the text."""

    layers: tuple[int, ...] = (1, 2, 3, 4, 5)
    views: list[DraftView] = field(default_factory=list)
    shown: list[tuple[int, list[int]]] = field(default_factory=list)
    seen: list[tuple[int, list[int], int, int, Tensor, int]] = field(default_factory=list)

    def watched(self, draft: Draft) -> Sequence[int]:
        return self.layers

    def watch(self, view: DraftView) -> None:
        self.views.append(view)
        self.shown.append((view.exit_layer, view.position.tolist()))

    def verified(self, draft: Draft, accepted: int) -> None:
        super().verified(draft, accepted)
        text = [*draft.prompt, *draft.token_ids]
        for view in self.views:
            gathered = view.gathered([(view, list(range(len(view.rows))))])
            assert torch.equal(gathered.top_token, view.top_token)
            for place, (row, at) in enumerate(zip(view.rows.tolist(), view.position.tolist(), strict=True)):
                if row == draft.row and at + 1 < len(text):
                    token = int(view.top_token[place])
                    self.seen.append((row, text, view.exit_layer, at, view.hidden_state[place], token))
        if all(row == draft.row for view in self.views for row in view.rows.tolist()):
            self.views.clear()


@in_turn(strategy=[Fixed(2), LayerSkip(3, 4), Random(0.8), Oracle()], case=["llama", "qwen3", "gpt2", "neox-parallel"])
def test_what_is_watched_are_the_states_of_the_text(case: Any, prompts: list[list[int]], strategy: Strategy) -> None:
    """Every layer, against whole sequences read once."""
    rule = Watching(layers=(1, 2, 3, 4, 5, 6))
    decoded(case, prompts[:1], strategy, rule, most=2 if strategy == Oracle() else 5)
    layers = set()
    for _, text, layer, at, hidden, token in rule.seen:
        (state,) = case.engine.read(text, [layer])
        torch.testing.assert_close(hidden, state[at], rtol=1e-2, atol=1e-2)
        assert token == int(case.engine.backbone.logits(state[at : at + 1]).argmax())
        layers.add(layer)
    # The oracle's drafts stand, so that the newest token of each is one of the text's.
    assert layers == {1, 2, 3, 4, 5, 6} or (strategy != Oracle() and layers >= {4, 5, 6})


def test_a_draft_s_tokens_join_where_they_left(llama: Any, prompts: list[list[int]]) -> None:
    rule = Watching()
    decoded(llama, prompts[:1], LayerSkip(3, 4), rule)
    assert [layer for layer, _ in rule.shown[:5]] == [1, 2, 3, 4, 5]
    end = len(prompts[0]) + 4  # the first token is prefill's; four are drafted
    assert [positions for _, positions in rule.shown[:3]] == [[end]] * 3  # the newest
    assert [positions for _, positions in rule.shown[3:5]] == [[end - 4, end - 3, end - 2, end - 1, end]] * 2


@pytest.mark.parametrize("strategy", [Random(0.8), Confidence(0.2)], ids=str)
def test_watching_changes_nothing_and_costs_no_layer(llama: Any, prompts: list[list[int]], strategy: Strategy) -> None:
    def facts(made: list[Generation]) -> list[Any]:
        return [(one.token_ids, one.layers_executed, one.exit_checks, one.lm_head_evaluations) for one in made]

    class Idle(Watching):
        def verified(self, draft: Draft, accepted: int) -> None:
            """Read nothing."""

    class Reads(Watching):
        def watch(self, view: DraftView) -> None:
            text = view.token_ids[0]
            self.seen.extend(zip(view.position.tolist(), view.best_tokens(2)[:, 0].tolist(), strict=True))
            assert len(set(view.rows.tolist())) == 1
            assert len(text) >= len(view.rows)

        def verified(self, draft: Draft, accepted: int) -> None:
            said = [token for _, token in self.seen]
            assert tuple(said[:accepted]) == draft.tokens[:accepted], (
                "the last layer's tokens are what drafts are held against"
            )
            assert len(said) >= accepted
            self.seen.clear()

    alone = facts(decoded(llama, prompts, strategy))
    assert facts(decoded(llama, prompts, strategy, Idle())) == alone
    assert facts(decoded(llama, prompts[:1], strategy, Reads(layers=(6,)))) == alone[:1], "the head is read once"


def test_what_cannot_be_watched_is_refused(llama: Any, prompts: list[list[int]]) -> None:
    class Peeking(Watching):
        def watch(self, view: DraftView) -> None:
            _ = view.full_depth_token

    for layer in (0, 7):
        with pytest.raises(OptionError, match=rf"Watching watches layer {layer}; the model has 6"):
            decoded(llama, prompts[:1], Fixed(2), Watching(layers=(layer,)))
    with pytest.raises(OptionError, match="cannot look ahead"):
        decoded(llama, prompts[:1], Fixed(2), Peeking())


# ------------------------------------------------------------------ rules of other projects

FOREIGN = """
import itertools
from harness.contracts import DraftRule, DraftSource

@dataclass(frozen=True)
class Outside(DraftRule, DraftSource):
    method: str = ""
    answer: object = None

    def start(self, model, batch):
        return self.answer if self.method == "start" else self

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "method") and name != "start":
            return lambda *given: object.__getattribute__(self, "answer")
        return object.__getattribute__(self, name)
"""
NO_TOKENS = [None, "ab", [1.5], torch.tensor([1, 2]), itertools.count(), {1, 2}, ["a"]]


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        *(("propose", answer) for answer in NO_TOKENS),
        *(("drafting_layers", answer) for answer in [5, [2, 1], [6], [-1]]),
        *(("watched", answer) for answer in [3, [0], ["a"]]),
        *(("verify_now", answer) for answer in [torch.zeros(2)]),
        ("start", None),
    ],
)
def test_a_foreign_rule_that_answers_otherwise_is_refused_by_its_package(
    llama: Any, prompts: list[list[int]], plug_in: Callable[..., Any], method: str, answer: object
) -> None:
    plug_in("odd", FOREIGN, DRAFTS)
    source = DRAFTS.load("odd")(method, answer)
    with pytest.raises(OptionError, match=rf"^Outside(\.{method})? of outside-odd "):
        decoded(llama, prompts[:1], Fixed(2), source)


def test_what_rules_are_lent_cannot_be_written(llama: Any, prompts: list[list[int]]) -> None:
    """Whatever a rule of another project does to what it is shown, full depth's tokens come out."""
    refused: Counter[str] = Counter()

    def scribble(name: str, lent: Any) -> None:
        try:
            lent[:] = [7]
            lent.append(7)
        except (TypeError, AttributeError):
            refused[name] += 1

    class Scribbles(Needing):
        def _scribble(self, draft: Draft) -> None:
            for name in ("prompt", "token_ids", "tokens", "layers", "probabilities"):
                scribble(name, getattr(draft, name))
                setattr(draft, name, [1, 2, 3])
            draft.row = draft.beside = 5

        def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
            self._scribble(draft)
            return [5, 6] if max_tokens > 2 else []

        def drafting_layers(self, draft: Draft) -> Sequence[int]:
            self._scribble(draft)
            return ()

        def verify_now(self, draft: Draft) -> bool:
            self._scribble(draft)
            return False

        def watched(self, draft: Draft) -> Sequence[int]:
            self._scribble(draft)
            return ()

        def verified(self, draft: Draft, accepted: int) -> None:
            self._scribble(draft)

    class Ends(RowStop):
        def over(self, token_ids: Sequence[int]) -> bool:
            scribble("over", token_ids)
            return False

    class Plans(PlannedRule, Strategy):
        def planned_layer(self, token_ids: Sequence[int]) -> int:
            scribble("planned_layer", token_ids)
            return 2

    def stop(token_ids: Sequence[int]) -> bool:
        scribble("stop", token_ids)
        return False

    decoded(llama, prompts, Random(0.6), Scribbles())
    many = {"kv": "recompute", "max_new_tokens": [NEW] * len(prompts)}
    plain, planned = (llama.engine.decode(prompts, strategy, **many) for strategy in (Full(), Plans()))
    ending = llama.engine.decode(prompts, Full(), **many, stop=stop, rules=[NamedStop("odd", Ends())] * len(prompts))
    assert [one.token_ids for one in ending] == [one.token_ids for one in plain]
    assert {layer for one in planned for layer in one.exit_layers[1:]} == {2}
    assert {len(one.token_ids) for one in planned} == {NEW}
    assert set(refused) == {
        *("prompt", "token_ids", "tokens", "layers", "probabilities"), "over", "planned_layer", "stop"
    }  # fmt: skip


def proposed(text: Sequence[int], draft: Sequence[int] = (), most: int = 16, **options: int) -> list[int]:
    rule = Lookup(**options).start(None, BATCH)  # type: ignore[arg-type]
    return list(rule.propose(Draft(0, text[:-1], text[-1:], list(draft)), most))


@pytest.mark.parametrize(
    ("text", "draft", "found"),
    [
        ([1, 2, 3, 4, 5, 6, 1, 2], [], [3, 4, 5, 6, 1, 2]),
        ([7, 2, 3, 4, 8, 1, 2, 3, 5, 6, 0, 1, 2, 3], [], [5, 6, 0, 1, 2, 3]),  # three known tokens before two
        ([1, 2, 3, 8, 8, 1, 2, 4, 8, 9, 1, 2], [], [4, 8, 9, 1, 2, 4]),  # the latest occurrence
        ([4, 1, 2, 3, 9, 4, 1], [2], [3, 9, 4, 1, 2, 3]),  # the draft counts as said
        ([5, 6], [5, 6], []),  # and is no text to look up in
        ([3, 3, 3], [], [3, 3, 3, 3, 3, 3]),  # a text that repeats itself goes on so
        ([1], [], []),
    ],
)
def test_what_followed_the_time_before(text: list[int], draft: list[int], found: list[int]) -> None:
    assert proposed(text, draft) == found


def test_no_more_than_asked_for() -> None:
    assert proposed([1, 2, 3, 4, 5, 1, 2], most=2) == [3, 4]
    assert proposed([1, 2, 3, 4, 1], min_n=1, k=2) == [2, 3]
    assert proposed([1, 2, 3, 4, 1], k=2) == []


def test_a_text_that_grows_is_searched_as_if_it_were_new() -> None:
    """Against a search from scratch, with rows that end and others that take their place."""
    draw = random.Random(0)
    rule = Lookup(n=3, min_n=2, k=5).start(None, Batch((0, 0), "cpu"))  # type: ignore[arg-type]
    for _ in range(60):
        prompt, said = [draw.randrange(4) for _ in range(draw.randrange(1, 12))], [draw.randrange(4)]
        draft = Draft(row := draw.randrange(2), prompt, said)
        for _ in range(10):
            drafted = [draw.randrange(4) for _ in range(draw.randrange(3))]
            draft.tokens[:] = drafted
            expected = searched([*prompt, *said], drafted, 5)
            assert list(rule.propose(draft, 5)) == expected, (row, prompt, said, drafted)
            said += [draw.randrange(4) for _ in range(draw.randrange(1, 4))]


def searched(text: list[int], draft: list[int], count: int) -> list[int]:
    whole = text + draft
    for size in (3, 2):
        for end in range(len(text) - 1, size - 1, -1):
            if len(whole) >= size and text[end - size : end] == whole[len(whole) - size :]:
                for place in range(end, end + count):
                    whole.append(text[place] if place < len(text) else whole[place])
                return whole[len(text) + len(draft) :]
    return []


# ------------------------------------------------------------------ recycling


def test_what_was_read_lately_goes_on_with_what_the_last_layer_said() -> None:
    rule = Recycling(k=3).start(INFO, BATCH)
    assert list(rule.watched(Draft(0, [5], [6]))) == [], "nothing is known of the row"
    prompt = [1, 2, 3, 1]
    assert list(rule.propose(Draft(0, prompt, [2]), 8)) == [3, 1, 2], "as in the prompt, where the next token is known"
    assert list(rule.propose(Draft(0, prompt, [2]), 1)) == [3]
    assert list(rule.watched(Draft(0, prompt, [2]))) == [INFO.num_layers]
    # Full depth says 3, 9 and 8 at the places of 2 and of the drafts 3 and 1, the last behind a wrong one.
    rule.watch(seen([2, 3, 1], [4, 5, 6], [3, 9, 8]))
    assert list(rule.propose(Draft(0, prompt, [2, 3, 9]), 8)) == [], "9 was never read"
    assert list(rule.propose(Draft(0, prompt, [2, 3, 9, 1]), 8)) == [8]
    assert list(rule.propose(Draft(0, prompt, [2, 3, 9], [2]), 8)) == [3, 9], "a draft counts as said"
    assert list(rule.propose(Draft(0, [7], [1]), 8)) == [], "another text"


def seen(said: list[int], positions: list[int], best: list[int]) -> Any:
    """A view of places of one draft, with what the last layer says there."""
    view = SimpleNamespace(rows=torch.zeros(len(positions), dtype=torch.int64), token_ids=[said] * len(positions))
    view.position, view.top_token = torch.tensor(positions), torch.tensor(best)
    return view
