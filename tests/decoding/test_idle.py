"""Work in idle time: it never changes what a request yields, leaves off when one comes, and is bounded and counted."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from harness.contracts import Lossless, Prefetch, Strategy
from harness.decoding import engine as decoding
from harness.decoding.drafts.suffix import Suffix
from harness.decoding.engine import Engine, EngineSession
from harness.decoding.generation import Generation
from harness.decoding.idle import DRAFTED, KNOWN, recall
from strategies.full import Full
from strategies.random import Random
from tests.decoding.conftest import VOCABULARY, Case

POSITIONS, NEW = 150, 8
SUFFIX = Lossless(16, (Suffix(),))


def tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY), k=count)


class Clock:
    """A second for each look at it."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


@dataclass
class Editor:
    """A session whose requests are held against full depth's cold ones."""

    engine: Engine
    prefetch: Prefetch = "draft"
    strategy: Strategy = Full()  # noqa: RUF009

    def __post_init__(self) -> None:
        self.session = EngineSession(self.engine, POSITIONS, "recompute", "exact", self.prefetch)

    def ask(self, prompt: Sequence[int], owner: str = "me", lossless: Lossless | None = SUFFIX) -> Generation:
        made = self.session.decode(owner, prompt, self.strategy, max_new_tokens=NEW, lossless=lossless, seed=5)
        assert made.token_ids == self.cold(prompt, NEW)
        return made

    def cold(self, prompt: Sequence[int], count: int) -> list[int]:
        (made,) = self.engine.decode([prompt], Full(), kv="recompute", max_new_tokens=[count])
        return made.token_ids


@pytest.mark.parametrize("strategy", [Full(), Random(probability=0.5)])
def test_who_types_what_was_predicted_has_it_verified_in_one_pass(llama: Case, strategy: Strategy) -> None:
    editor, prompt = Editor(llama.engine, strategy=strategy), tokens(40)
    answer = editor.ask(prompt).token_ids
    editor.session.prefetch(math.inf)
    assert editor.session.idle.drafted == DRAFTED
    typed = [*prompt, *editor.cold(prompt, NEW + DRAFTED)[: NEW + 5]]
    assert typed[: 40 + NEW] == [*prompt, *answer]
    made = editor.ask(typed)
    assert made.prompt_reused == len(typed) - 1, "the keys and values of drafts stay"
    assert (made.verifications, sum(made.accepted), made.prefetch_used) == (1, NEW - 2, NEW - 2)
    assert made.drafts == NEW - 2, "the first token is the prompt's, the last the verification's own"
    assert editor.ask(typed).prefetch_used == 0, "each drafted token is used once"


def test_what_an_overtaken_request_said_is_known_to_the_next(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    editor, prompt = Editor(llama.engine, "none"), tokens(40)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "time", Clock())
        made = editor.session.decode("me", prompt, Full(), max_new_tokens=NEW, lossless=SUFFIX, within_s=6.5)
    assert 0 < len(made.token_ids) < NEW
    assert made.finish_reason is None
    said = len(made.token_ids)
    assert [text[-said:] for text in editor.session.idle.known("me")] == [tuple(made.token_ids)]
    assert sum(editor.ask(prompt).accepted) >= said - 1
    editor.session.prefetch(math.inf)
    assert editor.session.idle.drafted == 0, "nobody asked for drafts"


def test_typing_something_else_changes_nothing(llama: Case) -> None:
    editor, prompt = Editor(llama.engine), tokens(40)
    editor.ask(prompt)
    for place in range(12):  # like what was drafted, up to some place
        editor.session.prefetch(math.inf)
        ahead = editor.cold(prompt, NEW + DRAFTED)[: 3 * place]
        made = editor.ask([*prompt, *ahead, *tokens(3, seed=place + 1)])
        assert made.prefetch_used <= editor.session.idle.drafted
    assert len(editor.session.idle.known("me")) == KNOWN
    assert editor.session.idle.drafted <= 12 * DRAFTED


def test_drafting_leaves_off_after_any_piece(llama: Case) -> None:
    prompt = tokens(40)
    for pieces in (0, 1, 2, 3, 9, DRAFTED):
        editor = Editor(llama.engine)
        editor.ask(prompt)
        idle = editor.session.idle
        for _ in range(pieces):
            idle.piece()
        idle.begin()
        assert idle.drafted <= max(0, pieces - 1) * 17
        assert (idle.drafted > 0) == (pieces > 1), "the first piece puts the answer into its row, the next reads it"
        following = [*prompt, *editor.cold(prompt, NEW + 2), *tokens(2, seed=9)]
        editor.ask(following)
        assert not editor.session._batch.running


def test_nothing_is_drafted_where_it_would_serve_nobody(llama: Case) -> None:
    lossy = Editor(llama.engine)
    lossy.ask(tokens(40), lossless=None)
    lossy.session.prefetch(math.inf)
    alone = Editor(llama.engine)
    alone.ask(tokens(40), lossless=Lossless())
    alone.session.prefetch(math.inf)
    full = Editor(llama.engine)
    full.ask(tokens(POSITIONS - NEW))
    full.session.prefetch(math.inf)
    assert [one.session.idle.drafted for one in (lossy, alone, full)] == [0, 0, 0]
    cold = EngineSession(llama.engine, POSITIONS, "recompute", "none", "draft")
    cold.decode("me", tokens(40), Full(), max_new_tokens=NEW, lossless=SUFFIX)
    cold.prefetch(math.inf)
    assert (cold.idle.drafted, cold.idle.known("me")) == (0, ())


def test_owners_know_nothing_of_each_other_and_what_is_forgotten_is_gone(llama: Case) -> None:
    editor, prompt = Editor(llama.engine), tokens(40)
    editor.ask(prompt)
    editor.session.prefetch(math.inf)
    idle = editor.session.idle
    assert (len(idle.known("me")), idle.known("you"), idle.known(None)) == (1, (), ())
    made = editor.ask([*prompt, *editor.cold(prompt, 3)], owner="you")
    assert (made.prompt_reused, made.prefetch_used) == (0, 0)
    editor.session.forget()
    assert idle.known("me") == ()
    assert not idle.piece()


@pytest.mark.parametrize(
    ("known", "said", "found"),
    [
        ([[1, 2, 5, 6, 7]], [8, 1, 2], (2, [5, 6, 7])),
        ([[1, 2, 5], [1, 2, 6]], [8, 1, 2], (2, [6])),  # the newest of equally long matches
        ([[8, 1, 2, 5], [1, 2, 6]], [8, 1, 2], (3, [5])),  # the longest before it
        ([[1, 2, 5, 1, 2, 6]], [8, 1, 2], (2, [6])),  # and the last one in a text
        ([[1, 2]], [8, 1, 2], (0, ())),  # nothing follows
    ],
)
def test_the_longest_match_is_recalled(known: list[list[int]], said: list[int], found: tuple[int, Any]) -> None:
    assert recall(known, said) == found
