"""Prompt lookup: what followed the last words the time before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from harness.contracts import Batch, Draft, DraftRule, ModelInfo
from harness.contracts.drafts import DraftSource


@dataclass(frozen=True)
class Lookup(DraftSource):
    """Propose what followed the latest earlier occurrence of the last tokens in prompt and completion.

    Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding). No layer runs and
    nothing is trained: the baseline that drafting by early exit has to beat. Tokens of the draft count as said.
    A proposal that reaches the end of the text goes on with itself, as a text that repeats itself does.
    """

    n: Annotated[int, Field(ge=1, le=16, description="last tokens that are looked up, the longest match first")] = 3
    min_n: Annotated[int, Field(ge=1, le=16, description="fewest of them that count as a match")] = 2
    k: Annotated[int, Field(ge=1, le=64, description="tokens proposed at most")] = 6

    def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
        """Know none of the rows' texts yet."""
        return _Lookup(self)


class _Text:
    """Prompt and completion of one row, and where each run of tokens was last followed by something."""

    def __init__(self, prompt: Sequence[int], sizes: range) -> None:
        self.prompt, self._sizes = prompt, sizes
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.extend(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """Go on with tokens; the runs before each of them are followed by it."""
        for token in tokens:
            end = len(self.tokens)
            for size in self._sizes:
                if size <= end:
                    self._after[tuple(self.tokens[end - size :])] = end
            self.tokens.append(token)

    def after(self, tail: Sequence[int]) -> tuple[int, int]:
        """Return how many of a tail's last tokens stand earlier in the text, 0 for too few, and where it goes on."""
        for size in reversed(self._sizes):
            if size <= len(tail):
                found = self._after.get(tuple(tail[len(tail) - size :]))
                if found is not None:
                    return size, found
        return 0, 0


class _Lookup(DraftRule):
    def __init__(self, options: Lookup) -> None:
        self._sizes, self._k = range(min(options.min_n, options.n), options.n + 1), options.k
        self._texts: dict[int, _Text] = {}

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        text = self._texts.get(draft.row)
        if text is None or text.prompt is not draft.prompt:
            text = self._texts[draft.row] = _Text(draft.prompt, self._sizes)
        text.extend(draft.token_ids[len(text.tokens) - len(draft.prompt) :])
        said = [*text.tokens[-self._sizes[-1] :], *draft.tokens]
        size, at = text.after(said)
        if not size:
            return ()
        begin = len(text.tokens) - len(said) + len(draft.tokens)  # where what was said stands in the text
        for _ in range(min(self._k, max_tokens)):
            said.append(text.tokens[at] if at < len(text.tokens) else said[at - begin])
            at += 1
        return said[len(said) - min(self._k, max_tokens) :]
