"""What became of a row's drafts, in the words in which answers, frames and counters tell it."""

from __future__ import annotations

from dataclasses import dataclass

from harness.decoding.generation import Generation

__all__ = ["DraftFacts"]


@dataclass(frozen=True, slots=True)
class DraftFacts:
    """What lossless decoding of one completion drafted and verified.

    Attributes:
        drafted_at: for each token the decoder layers that ran before a draft of its place was made, 0 where a source
            proposed it without running any; ``None`` where there was no draft.
        accepted: for each token whether it is the draft's; else full depth said it, in place of the draft if there was
            one.
        drafted_tokens: tokens drafted, discarded ones included.
        verifications: passes that went through all layers.
        layers_discarded: decoder layers run for tokens that a verification discarded.
    """

    drafted_at: tuple[int | None, ...]
    accepted: tuple[bool, ...]
    drafted_tokens: int
    verifications: int
    layers_discarded: int

    @classmethod
    def of(cls, made: Generation) -> DraftFacts | None:
        """Return what became of the drafts of a row; ``None`` where it decoded lossily."""
        if not made.lossless:
            return None
        return cls(tuple(made.drafted_at), tuple(made.accepted), made.drafts, made.verifications, made.layers_discarded)

    @property
    def accepted_tokens(self) -> int:
        """Drafted tokens that stand."""
        return sum(self.accepted)

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that stand; ``None`` where nothing was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    @property
    def tokens_per_verification(self) -> float | None:
        """Tokens that a verification yielded on average, 1 without drafts; ``None`` where only prefill made one."""
        return (len(self.accepted) - 1) / self.verifications if self.verifications else None

    def __str__(self) -> str:
        if self.tokens_per_verification is None:
            return "nothing drafted"
        drafts = f"{self.accepted_tokens} of {self.drafted_tokens} drafted tokens accepted"
        return f"{self.tokens_per_verification:.1f} tokens per verification, {drafts}"
