"""What a verification threw away: the end of a draft that full depth did not agree with."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from harness.records.record import Count, Record

__all__ = ["DiscardedRecord"]


class DiscardedRecord(Record):
    """Drafted tokens that do not stand: the one that full depth replaced, and those behind it.

    Attributes:
        place: of the first of them in the completion, 0-based. The token there is what full depth said in its place;
            where the completion ends before, nothing was compared.
        token_ids: the tokens.
        drafted_at: for each the decoder layers that ran before it was drafted, 0 where a source proposed it.
        token_texts: what each would have added to the text.
    """

    place: Count
    token_ids: tuple[Count, ...]
    drafted_at: tuple[Count, ...]
    token_texts: tuple[str, ...]

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if not len(self.token_ids) == len(self.drafted_at) == len(self.token_texts):
            raise ValueError("discarded tokens, layers and texts that are not equally many")
        return self
