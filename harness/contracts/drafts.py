"""What lossless decoding asks of whoever drafts: tokens without layers, when to verify, and what came of it.

A draft is made of the tokens at which a strategy exited, and of those that a source proposed without running a layer.
The next pass that goes deep verifies all of it: it computes what full depth would have said at each place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.contracts.heads import LM_HEAD, HeadChoice
from harness.contracts.models import ModelInfo
from harness.contracts.strategies import Batch

__all__ = ["Draft", "DraftRule", "DraftSource", "Lossless"]


@dataclass(slots=True)
class Draft:
    """One row and its tokens that wait to be verified. To be read, not changed.

    Attributes:
        row: row of the batch.
        prompt: tokens of its prompt.
        token_ids: its verified tokens, at least one.
        tokens: its draft: what follows them unless full depth disagrees.
        layers: decoder layers that ran before each of those was drafted; 0 where a source proposed it.
    """

    row: int
    prompt: Sequence[int]
    token_ids: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)


class DraftRule:
    """Decision maker of one batch. Subclass it and override what differs; a strategy's own rule may be one, too.

    Without any, tokens are drafted where a strategy exits, and verified when it lets one go deep.
    """

    def propose(self, draft: Draft, most: int) -> Sequence[int]:
        """Return tokens to go on with, ``most`` (at least 1) at most, none to let the strategy draft.

        Asked before each token of a row that is not about to be verified. What is proposed is verified at once.
        """
        return ()

    def verify_now(self, draft: Draft) -> bool:
        """Return whether the draft, at least one token, ends here. Asked after each token of an exit."""
        return False

    def verified(self, draft: Draft, accepted: int) -> None:
        """Learn how many of the draft's tokens stand; ``token_ids`` has them already, and the one that follows."""


class DraftSource(Protocol):
    """A frozen dataclass whose fields are its options, as a strategy's are; registered in ``harness.drafts``."""

    def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
        """Return the rule of one batch."""


@dataclass(frozen=True, slots=True)
class Lossless:
    """How to decode losslessly.

    Attributes:
        most: tokens of a draft at most, at least 1; then it is verified.
        source: proposes tokens; ``None`` where only the strategy's exits draft.
        head: reads the tokens that exits draft, unless the strategy has evaluated the LM head already. Verification
            reads the LM head.
    """

    most: int = 16
    source: DraftSource | None = None
    head: HeadChoice = LM_HEAD
