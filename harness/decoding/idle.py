"""Work for an owner's next request while nobody waits: in an editor, between two keys.

Prompts that were read with exits become exact, and decoding goes on behind the last answer. An editor's user often
types what was predicted. What full depth has said behind the same text is then the best draft there is, and its keys
and values need not be read. All of it is done in pieces, none longer than one pass, so that a request waits no longer;
what is drafted behind one answer is bounded, and with it the energy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from harness.contracts import Prefetch
from harness.decoding.generation import Generation
from harness.decoding.loop import OpenBatch

DRAFTED = 32
"""Tokens decoded behind an answer at most: three lines or four."""
PIECE = 64
"""Tokens of a prompt that are read or made exact in one piece."""
KNOWN, BEFORE = 8, 32
"""Texts of an owner that are known, and tokens of their prompts, by which they are found."""
OWNERS = 64
"""Owners of which texts are known, those who were answered last."""

GoOn: TypeAlias = Callable[[Sequence[int], int], object]
"""Puts a text into the row that was answered, to decode so many tokens behind it; the row then waits to be read."""


@dataclass(slots=True)
class _Answer:
    owner: str
    text: Sequence[int]  # prompt and completion
    go_on: GoOn | None  # None once that is done, or would serve nobody


@dataclass(slots=True)
class _Text:
    tokens: Sequence[int]  # the last ones of a prompt, and what was decoded behind them
    drafted: int  # where that begins which was decoded in idle time; what a request has accepted of it is before that


class IdleWork:
    """What there is to do for the owners of a batch, and the texts that are known of them.

    Args:
        batch: keeps prompts.
        generations: the batch's.
        positions: longest prompt and completion of a row, together.
        prefetch: what to do; texts are known whatever it is.

    Attributes:
        batch: that it works in.
        deepened: tokens of prompts that were made exact.
        drafted: tokens decoded behind answers.
    """

    def __init__(
        self, batch: OpenBatch, generations: Sequence[Generation], positions: int, prefetch: Prefetch = "none"
    ) -> None:
        self.batch, self._generations, self._positions = batch, generations, positions
        self._deepens, self._drafts = prefetch in ("deepen", "all"), prefetch in ("draft", "all")
        self._answers: dict[int, _Answer] = {}  # by row, the newest last
        self._texts: dict[str, deque[_Text]] = {}
        self._drafting: int | None = None
        self.deepened = self.drafted = 0

    def known(self, owner: str | None) -> Sequence[Sequence[int]]:
        """Return what was decoded for an owner lately, behind the last tokens of its prompt, the newest text last."""
        return () if owner is None else tuple(text.tokens for text in self._texts.get(owner, ()))

    def answered(self, row: int, owner: str | None, prompt: Sequence[int], go_on: GoOn | None = None) -> None:
        """Know a completion, whole or overtaken, whose row was dropped; drafts go on behind an owner's last one."""
        made = self._generations[row]
        if owner is None or made.failure is not None:
            return
        for answer in self._answers.values():
            if answer.owner == owner:
                answer.go_on = None
        goes_on = bool(made.token_ids) and made.finish_reason != "eos"
        self._answers[row] = _Answer(owner, [*prompt, *made.token_ids], go_on if goes_on else None)
        if not made.token_ids:
            return
        tokens = (*prompt[-BEFORE:], *made.token_ids)
        self._texts[owner] = self._texts.pop(owner, deque(maxlen=KNOWN))
        self._texts[owner].append(_Text(tokens, len(tokens)))
        if len(self._texts) > OWNERS:
            del self._texts[next(iter(self._texts))]

    def used(self, owner: str | None, prompt: Sequence[int], made: Generation) -> int:
        """Return how many accepted tokens of a completion idle time had decoded; each of these counts once."""
        texts = () if owner is None else self._texts.get(owner, ())
        found = [(recall([text.tokens], prompt[-BEFORE:]), text) for text in reversed(texts)]
        (_, rest), text = max(found, key=lambda one: one[0][0], default=((0, ()), None))
        place, count = 0 if text is None else len(text.tokens) - len(rest), 0
        for token, said, accepted in zip(rest, made.token_ids, made.accepted, strict=False):
            if text is None or token != said:
                break
            if place >= text.drafted:
                count, text.drafted = count + accepted, place + 1
            place += 1
        return count

    def begin(self, row: int | None = None) -> None:
        """Leave off, since a request has come; it takes a row, if that is known already."""
        if self._drafting is not None:
            self._end_draft(self._drafting)
        if row is not None:
            self._answers.pop(row, None)

    def piece(self) -> bool:
        """Do a piece of work, for the newest answer first; return whether there was any."""
        batch = self.batch
        if self._drafting is not None:
            row = self._drafting
            batch.prefill([row], PIECE) if row in batch.reading else batch.step()
            if row not in batch.reading and row not in batch.running:
                self._end_draft(row)
            return True
        for row in reversed(self._answers) if self._deepens else ():
            if batch.keeps(row) and (left := batch.shallow(row)):
                batch.deepen(row, PIECE)
                self.deepened += min(left, PIECE)
                return True
        for row, answer in reversed(self._answers.items()) if self._drafts else ():
            limit = min(DRAFTED, self._positions - len(answer.text))
            if answer.go_on is not None and limit > 0 and batch.keeps(row) and answer.owner in self._texts:
                answer.go_on(answer.text, limit)
                answer.go_on, self._drafting = None, row
                return True
        return False

    def _end_draft(self, row: int) -> None:
        """Take the row that drafts out; what is known behind its answer takes that answer's place."""
        made, answer, self._drafting = self._generations[row], self._answers[row], None
        self.batch.drop(row)
        if made.failure is not None:
            self.batch.forget(row)
            return
        self.drafted += len(made.token_ids)
        text = self._texts[answer.owner][-1]
        text.tokens = (*text.tokens, *made.token_ids)

    def forget(self) -> None:
        """Know nothing of what came before."""
        self.begin()
        self._answers.clear()
        self._texts.clear()


def recall(known: Sequence[Sequence[int]], tail: Sequence[int]) -> tuple[int, Sequence[int]]:
    """Return how many of a tail's last tokens known texts have where most match, and what follows them there.

    Of equally long matches it is the last one in the newest text, which is the last.
    """
    longest = 0
    rest: Sequence[int] = ()
    for text in reversed(known):
        for end in range(len(text) - 1, longest, -1):
            same = 0
            while same < min(end, len(tail)) and text[end - 1 - same] == tail[-1 - same]:
                same += 1
            if same > longest:
                longest, rest = same, text[end:]
    return longest, rest
