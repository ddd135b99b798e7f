"""The text of a completion as its tokens arrive: whole characters, and nothing that may turn out to be a stop text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.contracts import Tokenizer
from harness.decoding.generation import Generation

__all__ = ["Token", "Transcript"]

INCOMPLETE = "\ufffd"
"""What a tokenizer puts in place of an incomplete character."""


CONTEXT = 5
"""Tokens of the prompt that a completion's first ones are spelled with."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, when it is made.

    Attributes:
        index: 0-based place in the completion.
        token_id: its id.
        text: what it adds to the text that may be sent; empty while a character or a possible stop text is incomplete.
        logprob: natural log of its probability under the exit head that chose it.
        exit_layer: decoder layers executed for it.
        special: whether it is a special token, which adds no text.
        time_s: seconds from when its row's time began.
        last: whether the completion ends with it.
    """

    index: int
    token_id: int
    text: str
    logprob: float
    exit_layer: int
    special: bool
    time_s: float
    last: bool = False

    @property
    def probability(self) -> float:
        """Its probability under the exit head that chose it."""
        return math.exp(self.logprob)


class Transcript:
    """Grows by one token at a time.

    Args:
        tokenizer: spells tokens.
        stop: texts that end the completion; the one that is complete first does.
        keep_stop: whether that text belongs to the completion.
        silent: tokens that add no text (special ones).
        after: tokens before the completion; the last few say how its first token is spelled, since some tokenizers
            write no space at the beginning of a text.

    Attributes:
        stopped: whether a stop text came.
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
        # Tokens from _start on are spelled again, those from _read on are not in the text.
        self._start, self._read = 0, len(self._ids)
        self._text = ""
        self._sent = 0
        self.stopped = False
        self.tokens: list[Token] = []

    def add(self, token_id: int) -> bool:
        """Take one token; returns whether a stop text is complete."""
        if token_id not in self._silent:
            self._ids.append(token_id)
            before = self._tokenizer.decode(self._ids[self._start : self._read])
            whole = self._tokenizer.decode(self._ids[self._start :])
            if len(whole) > len(before) and not whole.endswith(INCOMPLETE):
                self._start, self._read = self._read, len(self._ids)
                self._append(whole[len(before) :])
            elif any(stop in whole[len(before) :] for stop in self._stop):  # beside half a character
                self._read = len(self._ids)
                self._append(whole[len(before) :])
        return self.stopped

    def read(self, made: Generation, *, last: bool) -> Token:
        """Return the token that a row made since the last call, with its probability.

        Args:
            made: what the row has so far, one token more than :attr:`tokens`; its stop rule is :meth:`add`.
            last: the completion ends with it.
        """
        place = len(self.tokens)
        token = Token(
            index=place,
            token_id=made.token_ids[place],
            text=self.take(),
            logprob=made.log_probabilities[place],
            exit_layer=made.exit_layers[place],
            special=made.token_ids[place] in self._silent,
            time_s=made.token_times_s[place],
            last=last,
        )
        self.tokens.append(token)
        return token

    @property
    def text(self) -> str:
        """Complete characters so far, including those held back."""
        return self._text

    def take(self) -> str:
        """Return what may be sent and was not yet."""
        end = len(self._text)
        if not self.stopped and not self._keep:
            end -= max((_begun(self._text, stop) for stop in self._stop), default=0)
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def finish(self) -> str:
        """Return all of the text; nothing more will come."""
        if not self.stopped and self._read < len(self._ids):
            before = self._tokenizer.decode(self._ids[self._start : self._read])
            self._read = len(self._ids)
            self._append(self._tokenizer.decode(self._ids[self._start :])[len(before) :])
        return self._text

    def rest(self) -> str:
        """Return what :meth:`take` held back, after :meth:`finish`."""
        piece = self._text[self._sent :]
        self._sent = len(self._text)
        return piece

    def _append(self, piece: str) -> None:
        seen = len(self._text)
        self._text += piece
        found = []
        for stop in self._stop:
            place = self._text.find(stop, max(0, seen - len(stop) + 1))
            if place >= 0:
                found.append((place + len(stop), place))
        if found:
            end, place = min(found)
            self._text = self._text[: end if self._keep else place]
            self.stopped = True


def _begun(text: str, stop: str) -> int:
    """Return how many of a text's last characters are the beginning of a stop text."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
