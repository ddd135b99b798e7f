"""The text of a completion as its tokens arrive: whole characters, and nothing that may turn out to be a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from harness.contracts import TextCodec

__all__ = ["Transcript"]

INCOMPLETE = "\ufffd"
"""What a tokenizer puts in place of an incomplete character."""


CONTEXT = 5
"""Tokens of the prompt that a completion's first ones are spelled with."""


class Transcript:
    """Grows by one token at a time.

    Args:
        codec: the tokenizer.
        stop: texts that end the completion; the one that is complete first does.
        keep_stop: whether that text belongs to the completion.
        silent: tokens that add no text (special ones).
        after: tokens before the completion; the last few say how its first token is spelled, since some tokenizers
            write no space at the beginning of a text.

    Attributes:
        stopped: whether a stop text came.
    """

    def __init__(
        self,
        codec: TextCodec,
        stop: Sequence[str],
        *,
        keep_stop: bool = False,
        silent: frozenset[int] = frozenset(),
        after: Sequence[int] = (),
    ) -> None:
        self._codec, self._stop, self._keep, self._silent = codec, tuple(stop), keep_stop, silent
        self._ids = [token for token in after[-CONTEXT:] if token not in silent]
        # Tokens from _start on are spelled again, those from _read on are not in the text.
        self._start, self._read = 0, len(self._ids)
        self._text = ""
        self._sent = 0
        self.stopped = False

    def add(self, token_id: int) -> bool:
        """Take one token; returns whether a stop text is complete."""
        if token_id not in self._silent:
            self._ids.append(token_id)
            before = self._codec.decode(self._ids[self._start : self._read])
            whole = self._codec.decode(self._ids[self._start :])
            if len(whole) > len(before) and not whole.endswith(INCOMPLETE):
                self._start, self._read = self._read, len(self._ids)
                self._append(whole[len(before) :])
            elif any(stop in whole[len(before) :] for stop in self._stop):  # beside half a character
                self._read = len(self._ids)
                self._append(whole[len(before) :])
        return self.stopped

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
            before = self._codec.decode(self._ids[self._start : self._read])
            self._read = len(self._ids)
            self._append(self._codec.decode(self._ids[self._start :])[len(before) :])
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
