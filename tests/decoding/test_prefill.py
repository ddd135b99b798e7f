"""A prompt that is read in pieces, or begins as an earlier one did, yields what it yields when it is read whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

from harness.contracts import Draft, DraftRule, DraftSource, ExitView, Lossless, ModelInfo, Strategy
from harness.decoding import loop
from harness.decoding.cache import FEWEST, KeptPrompts, KVCache
from harness.decoding.engine import Engine, EngineSession
from harness.decoding.exits import RowExits
from harness.decoding.generation import Generation
from harness.decoding.step import PrefixPass
from harness.registry import KV_POLICIES
from strategies.full import Full
from strategies.random import Random
from tests.crossing import in_turn
from tests.decoding.conftest import FORMS, KINDS, LAYERS, each_kind

ROWS, POSITIONS, NEW = 3, 120, 8
LONG = 70
CACHED = [name for name in KV_POLICIES.names() if KV_POLICIES.load(name).facts.keeps_cache]


@dataclass(frozen=True)
class Piece:
    """What a prompt pass read."""

    rows: tuple[int, ...]
    start: int
    tokens: tuple[int, ...]  # of the first row


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Piece]:
    """Every piece of a prompt that open batches read during the test."""
    pieces: list[Piece] = []

    class Watched(PrefixPass):
        def __init__(self, *given: Any, start: int = 0, **more: Any) -> None:
            super().__init__(*given, start=start, **more)
            if self._cache is not None:
                pieces.append(Piece(tuple(given[3]), start, tuple(given[2][0])))

    monkeypatch.setattr(loop, "PrefixPass", Watched)
    return pieces


@dataclass
class Opened:
    """An open batch whose rows may keep their prompts."""

    engine: Engine
    kv: str = "propagate"
    kept: int = ROWS
    tally: list[Generation] = field(default_factory=lambda: [Generation() for _ in range(ROWS)])

    def __post_init__(self) -> None:
        self.exits = RowExits(self.engine.info, "cpu", self.tally)
        self.batch = self.engine.open(ROWS, POSITIONS, self.kv, self.exits, self.tally, self.kept)

    @property
    def entries(self) -> torch.Tensor:
        assert self.batch._cache is not None
        return self.batch._cache.entries

    def join(
        self, row: int, prompt: list[int], strategy: Strategy | None = None, new: int = NEW, owner: str | None = "me"
    ) -> int:
        self.exits.join(row, strategy or Full(), 3)
        return self.batch.join(row, prompt, new, owner=owner)

    def finish(self, most: int | None = None) -> None:
        while self.batch.running or self.batch.reading:
            self.batch.prefill(list(self.batch.reading)[:1], most)
            if self.batch.running:
                self.batch.step()

    def serve(self, row: int, prompt: list[int], strategy: Strategy | None = None, **given: Any) -> Generation:
        self.join(row, prompt, strategy, **given)
        self.finish()
        return self.tally[row]


def facts(one: Generation) -> tuple[Any, ...]:
    return one.token_ids, one.exit_layers, one.finish_reason, one.layers_executed, one.lm_head_evaluations


def alone(engine: Engine, prompt: list[int], kv: str = "propagate", strategy: Strategy | None = None) -> Any:
    return facts(engine.decode([prompt], strategy or Full(), kv=kv, max_new_tokens=[NEW], seeds=[3])[0])


@pytest.fixture(scope="module")
def draw() -> Callable[..., list[int]]:
    """``draw(length, seed)``: tokens of a prompt."""

    def drawn(length: int, seed: int = 0) -> list[int]:
        chance = random.Random(seed)
        return [chance.randrange(1, 97) for _ in range(length)]

    return drawn


# ---------------------------------------------------------------------------------- completions


@pytest.mark.parametrize("keep", ["none", "prompt", "exact", "all"])
@in_turn(case=list(FORMS), kv=[*CACHED, "lossless"])
def test_what_is_kept_of_a_completion_changes_no_token_of_the_next(
    case: Any, kv: str, keep: Any, draw: Callable[..., list[int]]
) -> None:
    """Whatever exited before: full depth decodes behind it what it decodes alone. Not so where ``all`` is kept."""
    lossless = Lossless(4) if kv == "lossless" else None
    kv = "recompute" if kv == "lossless" else kv
    session = EngineSession(case.engine, POSITIONS, kv, keep)
    decode = partial(session.decode, "me", max_new_tokens=NEW)
    prompt, kept_of_completions = draw(LONG), 0
    for probability in (0.0, 0.4, 0.8):
        strategy = Random(probability=probability)
        made = decode(prompt, strategy, seed=3, lossless=lossless)
        following = [*prompt, *made.token_ids, *draw(2, seed=len(prompt))]
        found = decode(following, Full())
        reused = found.prompt_reused
        if keep != "all" or not KV_POLICIES.load(kv).facts.fills:
            assert facts(found)[:2] == alone(case.engine, following)[:2]
        assert reused <= len(prompt) + NEW - 1
        assert reused >= (0 if keep == "none" else len(prompt))
        assert reused == 0 or keep != "none"
        kept_of_completions += reused - len(prompt)
        if keep in ("exact", "all") and (probability == 0 or lossless is not None):
            assert reused == len(prompt) + NEW - 1  # the last token was never read
        prompt = draw(LONG, seed=int(10 * probability) + 1)
    if keep == "prompt":
        assert kept_of_completions == 0
    if keep == "all" and KV_POLICIES.load(kv).facts.fills:
        assert kept_of_completions >= 3 * (NEW - 2)


@dataclass(frozen=True)
class ExitsAndStops(Strategy):
    """Exits after three layers, and then ends the completion after four, on the way to which what waits is taken."""

    exits: int = 4

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        return 3, 4

    def should_exit(self, view: ExitView) -> torch.Tensor:
        done = torch.tensor([len(tokens) > self.exits for tokens in view.token_ids])
        if view.exit_layer == 4:
            view.stop(done)
        return ~done


@each_kind
def test_nothing_is_kept_of_what_went_along_with_a_pass_that_stopped(case: Any, draw: Callable[..., list[int]]) -> None:
    session, prompt = EngineSession(case.engine, POSITIONS, "recompute", "exact"), draw(40)
    made = session.decode("me", prompt, ExitsAndStops(), max_new_tokens=20)
    assert (made.finish_reason, len(made.token_ids)) == ("strategy", 5)
    assert session.decode("me", [*prompt, *made.token_ids, 5], Full(), max_new_tokens=1).prompt_reused == len(prompt)


# Three depths wait at the end, the deepest longest; the last but one is taken deep; all are; none exited.
WAITING = [[6, 5, 6, 4, 4, 2, 3, 1], [6, 2, 4, 3, 1, 1, 6, 2], [6, 1, 2, 3, 4, 5, 5, 6], [6] * 8]


@in_turn(case=KINDS, kv=CACHED)
def test_what_is_kept_as_exact_is_full_depth_s_and_all_that_is_settled(
    case: Any, kv: str, draw: Callable[..., list[int]], exits: Any, caches: list[KVCache]
) -> None:
    """Keys and values of every layer, against transformers' of the same text."""
    for seed, layers in enumerate([*WAITING, *exits(6, NEW)]):
        session, prompt = EngineSession(case.engine, POSITIONS, kv, "exact"), draw(40, seed=seed)
        made = session.decode("me", prompt, Full(), max_new_tokens=NEW, exit_layers=layers)
        assert made.exit_layers == layers
        text = [*prompt, *made.token_ids]
        reused = session.decode("me", [*text, 5], Full(), max_new_tokens=1).prompt_reused
        with torch.no_grad():
            expected = case.reference(torch.tensor([text])).past_key_values
        for layer in range(LAYERS):
            for found, of in (("keys", expected.layers[layer].keys), ("values", expected.layers[layer].values)):
                torch.testing.assert_close(
                    getattr(caches[-1], found)[layer, 0, :, :reused], of[0, :, :reused], atol=2e-3, rtol=2e-3
                )
        # A token is read with the next one, and what waits goes deep with the first that does.
        deep = [
            max(layers[place:]) == LAYERS if kv == "recompute" else layers[place] == LAYERS for place in range(1, NEW)
        ]
        assert reused == len(prompt) + [*deep, False].index(False)


def test_an_overtaken_request_leaves_what_it_has_read(llama: Any, draw: Callable[..., list[int]]) -> None:
    session = EngineSession(llama.engine, POSITIONS, "recompute", "exact")
    session.PIECE = 32  # type: ignore[misc]  # of this one
    made = session.decode("me", draw(LONG), Full(), max_new_tokens=NEW, within_s=1e-9)
    assert (made.token_ids, made.finish_reason) == ([], None)
    whole = session.decode("me", draw(LONG), Full(), max_new_tokens=NEW, within_s=60)
    assert facts(whole) == alone(llama.engine, draw(LONG))
    assert session.decode("me", draw(LONG), Full(), max_new_tokens=NEW).prompt_reused == LONG - 1
    assert session.decode("you", draw(LONG), Full(), max_new_tokens=NEW).prompt_reused == 0


# --------------------------------------------------------------------------------------- pieces


@in_turn(case=list(FORMS), kv=CACHED, most=[3, 40])
def test_a_prompt_read_in_pieces_yields_what_it_yields_whole(
    case: Any, kv: str, most: int, draw: Callable[..., list[int]], caches: list[Any]
) -> None:
    prompt, strategy = draw(LONG), Random(probability=0.3)
    expected = alone(case.engine, prompt, kv, strategy)
    whole = caches[-1].entries[:, 0, :, :LONG]
    opened = Opened(case.engine, kv)
    opened.join(1, prompt, strategy)
    opened.finish(most)
    assert facts(opened.tally[1]) == expected
    torch.testing.assert_close(opened.entries[:, 1, :, :LONG], whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [1, 16, 17, 97])
def test_pieces_are_of_one_size_and_none_is_too_long(
    llama: Any, read: list[Piece], length: int, draw: Callable[..., list[int]]
) -> None:
    prompt, most = draw(length), 16
    opened = Opened(llama.engine)
    opened.join(0, prompt)
    opened.finish(most)
    sizes = [len(piece.tokens) for piece in read]
    assert [token for piece in read for token in piece.tokens] == prompt
    assert [piece.start for piece in read] == [sum(sizes[:place]) for place in range(len(sizes))]
    assert len(sizes) == -(-length // most)
    assert max(sizes) - min(sizes) <= len(sizes)
    assert max(sizes) <= most


@pytest.mark.parametrize("kv", CACHED)
def test_other_rows_make_tokens_while_a_prompt_is_read(
    llama: Any, kv: str, draw: Callable[..., list[int]], read: list[Piece]
) -> None:
    short, long, strategy = draw(9, 1), draw(LONG), Random(probability=0.3)
    opened = Opened(llama.engine, kv)
    batch = opened.batch
    opened.join(0, short, strategy)
    batch.prefill([0])
    opened.join(1, long, strategy)
    made = [len(opened.tally[0].token_ids)]
    while 1 in batch.reading:
        batch.prefill([1], 20)
        batch.step()
        made.append(len(opened.tally[0].token_ids))
    assert made == [1, 2, 3, 4, 5]  # one after each of four pieces
    assert len(opened.tally[1].token_ids) == 2  # that of its last piece, and the step's
    opened.finish()
    assert facts(opened.tally[0]) == alone(llama.engine, short, kv, strategy)
    assert facts(opened.tally[1]) == alone(llama.engine, long, kv, strategy)


# ----------------------------------------------------------------------------------------- reuse


@in_turn(case=list(FORMS), kv=CACHED)
def test_a_second_request_in_a_file_reads_what_is_new_and_yields_what_it_yields_alone(
    case: Any, kv: str, draw: Callable[..., list[int]], read: list[Piece]
) -> None:
    first, strategy = draw(LONG), Random(probability=0.3)
    second = [*first[:60], *draw(25, 5)]
    opened = Opened(case.engine, kv)
    opened.serve(0, first, strategy)
    assert opened.batch.row_for(second, "me", {0, 1, 2}) == 0
    read.clear()
    assert opened.join(0, second, strategy) == 60
    opened.finish()
    assert read == [Piece((0,), 60, tuple(second[60:]))]
    assert facts(opened.tally[0]) == alone(case.engine, second, kv, strategy)


def test_only_tokens_of_the_prompt_are_reused(llama: Any, draw: Callable[..., list[int]], read: list[Piece]) -> None:
    first, opened = draw(30), Opened(llama.engine)
    made = opened.serve(0, first, Random(probability=0.5)).token_ids
    second = [*first, *made, 7]
    read.clear()
    opened.serve(0, second)
    assert read == [Piece((0,), 30, (*made, 7))]


@in_turn(case=KINDS, length=[LONG, 40])
def test_of_a_prompt_that_is_there_wholly_the_last_token_is_read(
    case: Any, length: int, draw: Callable[..., list[int]], read: list[Piece]
) -> None:
    prompt, opened = draw(LONG), Opened(case.engine)
    opened.serve(0, prompt)
    read.clear()
    made = facts(opened.serve(0, prompt[:length]))
    assert read == [Piece((0,), length - 1, (prompt[length - 1],))]
    assert made == alone(case.engine, prompt[:length])


@pytest.mark.parametrize("alike", [0, FEWEST - 1, FEWEST])
def test_a_prompt_that_begins_otherwise_is_read_whole_but_for_what_pays(
    llama: Any, alike: int, draw: Callable[..., list[int]], read: list[Piece]
) -> None:
    first = draw(LONG)
    second = [*first[:alike], first[alike] % 96 + 1, *draw(30, 1)]
    opened = Opened(llama.engine)
    opened.serve(0, first)
    read.clear()
    made = facts(opened.serve(0, second))
    reused = alike if alike >= FEWEST else 0
    assert read == [Piece((0,), reused, tuple(second[reused:]))]
    assert made == alone(llama.engine, second)


@pytest.mark.parametrize(("first", "second"), [("me", "you"), (None, "me"), ("me", None), (None, None)])
def test_owners_share_nothing(
    llama: Any, draw: Callable[..., list[int]], read: list[Piece], first: str | None, second: str | None
) -> None:
    prompt, opened = draw(LONG), Opened(llama.engine)
    opened.join(0, prompt, owner=first)
    opened.batch.prefill([0])  # it runs on
    opened.serve(1, prompt, owner=first)  # and this one has ended
    read.clear()
    for row in (1, 2):
        assert opened.join(row, prompt, owner=second) == 0
        opened.batch.prefill([row])
        opened.batch.drop(row)
        opened.batch.forget(row)
    assert [piece.start for piece in read] == [0, 0]


@pytest.mark.parametrize("kv", CACHED)
def test_what_is_not_reused_is_wiped(llama: Any, kv: str, draw: Callable[..., list[int]]) -> None:
    """A neighbour's longer row has attention look at what lies behind a row, masked: 0 × NaN would be NaN."""
    first, strategy = draw(LONG), Random(probability=0.3)
    second = [*first[:20], *draw(5, 5)]
    opened = Opened(llama.engine, kv)
    opened.serve(0, first, strategy)
    opened.entries[:, 0, :, 20 : LONG + NEW - 1] = float("nan")  # what an overflow leaves
    assert opened.join(0, second, strategy) == 20
    assert not opened.entries[:, 0, :, 20:].any()
    opened.join(1, draw(90, 6), strategy, owner="another")
    opened.finish()
    assert facts(opened.tally[0]) == alone(llama.engine, second, kv, strategy)


@dataclass(frozen=True)
class Ten(DraftRule, DraftSource):
    """Proposes ten tokens at a time, none of which ends the completion."""

    end: int

    def start(self, model: Any, batch: Any) -> DraftRule:
        return self

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        return [token for token in range(1, 12) if token != self.end][:10]


def test_what_a_draft_wrote_behind_the_end_is_wiped(
    llama: Any, draw: Callable[..., list[int]], caches: list[KVCache]
) -> None:
    first = draw(LONG)
    end = llama.engine.decode([first], Full(), kv="recompute", max_new_tokens=[3])[0].token_ids[-1]
    session = EngineSession(llama.engine, POSITIONS, "recompute", "exact")
    lossless: Any = Lossless(12, (Ten(end),))
    ends = frozenset({end})
    made = session.decode("me", first, Full(), max_new_tokens=20, lossless=lossless, eos_token_ids=ends)
    assert len(made.token_ids) <= 3
    assert caches[-1].entries[:, 0, :, LONG + 4 : LONG + 8].any()
    second = [*first[: LONG - 5], first[LONG - 5] % 96 + 1]
    assert session.decode("me", second, Full(), max_new_tokens=1).prompt_reused == LONG - 5
    assert not caches[-1].entries[:, 0, :, len(second) :].any()


@pytest.mark.parametrize("kv", CACHED)
def test_a_row_whose_logits_were_not_finite_is_never_reused(
    llama: Any, kv: str, draw: Callable[..., list[int]], read: list[Piece]
) -> None:
    prompt, opened = draw(LONG), Opened(llama.engine, kv)
    opened.join(0, prompt)
    opened.batch.prefill([0])
    opened.entries[2, 0, :, 5] = float("nan")
    opened.batch.step()
    assert opened.tally[0].failure is not None
    read.clear()
    opened.join(0, prompt)
    assert opened.entries[:, 0].isfinite().all()  # wiped, with what the token wrote that failed
    opened.finish()
    assert [piece.start for piece in read] == [0]
    assert facts(opened.tally[0]) == alone(llama.engine, prompt, kv)


@pytest.mark.parametrize("kv", CACHED)
def test_one_who_leaves_while_its_prompt_is_read_leaves_what_was_read(
    llama: Any, kv: str, draw: Callable[..., list[int]], read: list[Piece]
) -> None:
    prompt, other, opened = draw(LONG), draw(9, 1), Opened(llama.engine, kv)
    opened.join(0, other, owner="another")
    opened.batch.prefill([0])
    opened.join(1, prompt)
    opened.batch.prefill([1], 20)  # 18 of them
    opened.batch.prefill([1], 20)  # and 18 more
    opened.batch.drop(1)
    assert not opened.batch.reading
    opened.batch.step()
    read.clear()
    row = opened.batch.row_for(prompt, "me", {1, 2})
    assert row == 1
    assert opened.join(row, prompt) == 36
    opened.finish()
    assert read == [Piece((1,), 36, tuple(prompt[36:]))]
    assert facts(opened.tally[1]) == alone(llama.engine, prompt, kv)
    assert facts(opened.tally[0]) == alone(llama.engine, other, kv)


def test_without_a_cache_there_is_nothing_to_reuse(llama: Any, draw: Callable[..., list[int]]) -> None:
    prompt, opened = draw(LONG), Opened(llama.engine, "none")
    expected = alone(llama.engine, prompt, "none")
    for _ in range(2):
        assert opened.join(0, prompt) == 0
        assert not opened.batch.reading
        opened.finish()
        assert facts(opened.tally[0]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "gpt2"], indirect=True)
def test_many_requests_of_some_owners_yield_what_each_yields_alone(case: Any) -> None:
    """Files that grow and change, in rows that others use in between."""
    chance, opened = random.Random(4), Opened(case.engine, "recompute", kept=2)
    files = [[chance.randrange(1, 97) for _ in range(90)] for _ in range(4)]
    wanted: dict[int, list[int]] = {}
    reused = done = 0
    while done < 24:
        free = {row for row in range(ROWS) if row not in opened.batch.running and row not in opened.batch.reading}
        for row in free & set(wanted):
            assert facts(opened.tally[row]) == alone(case.engine, wanted.pop(row), "recompute", Random(probability=0.3))
            done += 1
        if free and not opened.batch.reading and chance.random() < 0.7:
            number = chance.randrange(4)
            file = files[number]
            file[chance.randrange(10, 90)] = chance.randrange(1, 97)
            prompt, owner = file[: chance.randrange(3, 90)], str(number % 2)
            row = opened.batch.row_for(prompt, owner, free)
            reused += opened.join(row, prompt, Random(probability=0.3), owner=owner)
            wanted[row] = prompt
        opened.batch.prefill(list(opened.batch.reading)[:1], 24)
        if opened.batch.running:
            opened.batch.step()
    assert reused > 200


# ------------------------------------------------------------------------------ which row is taken


def kept(most: int, *prompts: Sequence[int]) -> KeptPrompts:
    """Prompts in rows from 0 on, the first begun first."""
    store = KeptPrompts(most)
    for row, prompt in enumerate(prompts):
        store.hold(row, "me", prompt, len(prompt))
    return store


A, B, C = [1] * 100, [2] * 100, [3] * 100


def test_a_new_prompt_goes_to_an_empty_row_and_then_to_the_one_begun_longest_ago() -> None:
    new = [9] * 50
    assert kept(3, A, B).row_for("me", new, {0, 1, 2, 3}) == 2
    store = kept(3, A, B, C)
    assert store.row_for("me", new, {0, 1, 2}) == 0
    store.forget(0)
    store.hold(0, "me", A, 100)  # begun again
    assert store.row_for("me", new, {0, 1, 2}) == 1
    assert store.row_for("me", new, {0, 2}) == 2


def test_no_more_prompts_are_kept_than_allowed_and_running_ones_do_not_count() -> None:
    store = kept(1, A, B, C)
    store.row_for("me", [9] * 50, {0, 1})  # row 2 runs
    assert store.find("me", A, 3) == (3, 0)
    assert store.find("me", B, 3) == (1, 99)
    assert store.find("me", C, 3) == (2, 99)


def test_where_none_may_be_kept_running_rows_share_nothing_either() -> None:
    assert kept(0, A).find("me", A, 1) == (1, 0)
