"""The result of decoding one row, and its text as the tokens arrive: whole characters, and no part of a stop text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from harness.contracts import CONTEXT, Tokenizer
from harness.errors import ModelError
from harness.records.work import Discarded, DraftWork, Work

FinishReason = Literal["stop", "eos", "length", "strategy"]


@dataclass(slots=True)
class Generation(Work):
    """One decoded row, filled while it runs; its work is counted in the fields of :class:`harness.records.work.Work`.

    Attributes:
        token_ids: generated tokens; an end-of-sequence token is the last of them.
        token_times_s: seconds from when its time began (the batch's start, or its arrival) to each token.
        finish_reason: why it ended: a stop rule, an end-of-sequence token, the limit of new tokens, or the strategy, of
            which nothing is among the tokens; ``None`` while it runs.
        stopped_by: name of the registered stop rule that ended it; empty for anything else.
        failure: why it could not go on (logits that are not finite, a stop rule that raised); what there is until then
            means nothing. ``None`` for a row that runs or has ended.
        lossless: whether its tokens are drafted and verified; all of them are then full depth's.
        draft: tokens that wait to be verified; none when it has ended.
        log_probabilities: natural log of each token's probability under the head that chose it; empty unless asked for.
        prompt_scores: what full depth says of each token of the prompt behind the first, where it was asked for:
            log-probability, the most probable token, and that one's.
        prompt_reused: first tokens of its prompt that were not read for it, since their keys and values were there.
        overtaken_s: seconds of each request of its editor session that typing overtook before it.
        prefetch_s: seconds of computing before it, while its user typed. prefetched: tokens decoded in them.
        prefetch_used: its own accepted tokens that had been decoded so.
    """

    token_ids: list[int] = field(default_factory=list)
    exit_layers: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stopped_by: str = ""
    failure: ModelError | None = None
    lossless: bool = False
    draft: list[int] = field(default_factory=list)
    drafted_at: list[int | None] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)
    discarded: list[Discarded] = field(default_factory=list)
    drafting: DraftWork = field(default_factory=DraftWork)
    rolled_back: DraftWork = field(default_factory=DraftWork)
    log_probabilities: list[float] = field(default_factory=list)
    prompt_scores: list[tuple[float, int, float]] = field(default_factory=list)
    prompt_reused: int = 0
    overtaken_s: tuple[float, ...] = ()
    prefetch_s: float = 0.0
    prefetched: int = 0
    prefetch_used: int = 0

    def first_stops(self, num_layers: int) -> list[int]:
        """Return after how many layers each token left, of ``num_layers``: where an exit drafted it, if that stands."""
        if not self.lossless:
            return list(self.exit_layers)
        return [at if kept and at else num_layers for at, kept in zip(self.drafted_at, self.accepted, strict=True)]


INCOMPLETE = "\ufffd"
"""The replacement of an incomplete character."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, when it is made.

    Attributes:
        index: 0-based place in the completion.
        text: what it adds to the text that may be sent; empty while a character or a possible stop text is incomplete.
        logprob: natural log of its probability under the exit head that chose it.
        exit_layer: decoder layers executed for it.
        special: whether it is a special token, which adds no text.
        time_s: seconds from when its row's time began.
        drafted_at: of lossless decoding, decoder layers that ran before a draft of its place was made, 0 where a source
            proposed it; ``None`` where there was no draft.
        accepted: of lossless decoding, whether it is the draft's; else full depth said it. ``None`` of lossy decoding.
        last: whether the completion ends with it.
    """

    index: int
    token_id: int
    text: str
    logprob: float
    exit_layer: int
    special: bool
    time_s: float
    drafted_at: int | None = None
    accepted: bool | None = None
    last: bool = False

    @property
    def probability(self) -> float:
        """Its probability under the exit head that chose it."""
        return math.exp(self.logprob)


class _Mark(NamedTuple):
    """Where a transcript stands after one token more."""

    ids: int  # tokens that are spelled
    start: int  # those from here on are spelled again,
    read: int  # and from here on are not in the text
    text: int  # characters, those behind a stop text included
    stopped: int | None  # where the text ends, once a stop text came


class Transcript:
    """Grows by one token at a time, and forgets tokens that are taken back.

    Args:
        stop: texts that end the completion; the one that is complete first does.
        keep_stop: whether that text belongs to the completion.
        silent: tokens that add no text (special ones).
        after: tokens before the completion; the last few say how its first token is spelled, since some tokenizers
            write no space at the beginning of a text.

    Attributes:
        tokens: what :meth:`read` returned.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        *,
        keep_stop: bool = False,
        silent: frozenset[int] = frozenset(),
        after: Sequence[int] = (),
    ) -> None:
        self._tokenizer, self._stop, self._keep, self._silent = tokenizer, tuple(stop), keep_stop, silent
        self._ids = [token for token in after[-CONTEXT:] if token not in silent]
        self._text = ""
        self._taken: list[int] = []
        self._marks = [_Mark(len(self._ids), 0, len(self._ids), 0, None)]  # before each token taken, and now
        self._sent = 0
        self.tokens: list[Token] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop text came."""
        return self._marks[-1].stopped is not None

    def follow(self, token_ids: Sequence[int]) -> bool:
        """Be the text of a completion's tokens so far: take those that are new, and forget what they replace.

        Args:
            token_ids: all of them; those that :meth:`read` returned are the first.

        Returns:
            Whether a stop text is complete: the row's stop rule. What it is asked about may be drafted.
        """
        same = len(self.tokens)
        for before, now in zip(self._taken[same:], token_ids[same:], strict=False):
            if before != now:
                break
            same += 1
        self._forget(same)
        for token in token_ids[same:]:
            self._add(token)
        return self.stopped

    def read(self, made: Generation, *, last: bool) -> Token:
        """Return the next token of a row, with its probability.

        Args:
            made: what the row has so far, at least one token more than :attr:`tokens`; its stop rule is :meth:`follow`.
            last: the completion ends with it.
        """
        # An end token is no part of the text, whatever it spells.
        self.follow(made.token_ids[:-1] if made.finish_reason == "eos" else made.token_ids)
        place = len(self.tokens)
        token = Token(
            index=place,
            token_id=made.token_ids[place],
            text=self._take(min(place + 1, len(self._taken))),
            logprob=made.log_probabilities[place],
            exit_layer=made.exit_layers[place],
            special=made.token_ids[place] in self._silent,
            time_s=made.token_times_s[place],
            drafted_at=made.drafted_at[place] if made.lossless else None,
            accepted=made.accepted[place] if made.lossless else None,
            last=last,
        )
        self.tokens.append(token)
        return token

    @property
    def text(self) -> str:
        """Complete characters so far, including those held back."""
        return self._text[: self._marks[-1].stopped]

    def finish(self) -> str:
        """Return all of the text; nothing more will come."""
        mark = self._marks[-1]
        if not self.stopped and mark.read < len(self._ids):
            before = self._tokenizer.decode(self._ids[mark.start : mark.read])
            piece = self._tokenizer.decode(self._ids[mark.start :])[len(before) :]
            self._marks[-1] = self._grown(piece, start=mark.start)
        return self.text

    def rest(self) -> str:
        """Return what :meth:`read` held back, after :meth:`finish`."""
        piece = self.text[self._sent :]
        self._sent = len(self.text)
        return piece

    def _add(self, token_id: int) -> None:
        """Take one token; where it cannot be spelled nothing has changed."""
        mark = self._marks[-1]
        if token_id not in self._silent:
            recent = [*self._ids[mark.start :], token_id]
            before, whole = self._tokenizer.decode(recent[: mark.read - mark.start]), self._tokenizer.decode(recent)
            piece = whole[len(before) :]
            self._ids.append(token_id)
            if len(whole) > len(before) and not whole.endswith(INCOMPLETE):
                mark = self._grown(piece, start=mark.read)
            elif any(stop in piece for stop in self._stop):  # beside half a character
                mark = self._grown(piece, start=mark.start)
            else:
                mark = mark._replace(ids=len(self._ids))
        self._taken.append(token_id)
        self._marks.append(mark)

    def _grown(self, piece: str, start: int) -> _Mark:
        """Add a piece, which all tokens spell, to the text."""
        seen = len(self._text)
        self._text += piece
        found = []
        for stop in self._stop:
            place = self._text.find(stop, max(0, seen - len(stop) + 1))
            if place >= 0:
                found.append((place + len(stop), place))
        stopped = min(found)[0 if self._keep else 1] if found else None
        return _Mark(len(self._ids), start, len(self._ids), len(self._text), stopped)

    def _forget(self, kept: int) -> None:
        del self._taken[kept:], self._marks[kept + 1 :]
        del self._ids[self._marks[-1].ids :]
        self._text = self._text[: self._marks[-1].text]

    def _take(self, place: int) -> str:
        """Return what may be sent of the text of the first tokens and was not yet."""
        mark = self._marks[place]
        end = mark.text if mark.stopped is None else mark.stopped
        if mark.stopped is None and not self._keep:
            end -= max((_begun(self._text[: mark.text], stop) for stop in self._stop), default=0)
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece


def _begun(text: str, stop: str) -> int:
    """Return how many of a text's last characters are the beginning of a stop text."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
