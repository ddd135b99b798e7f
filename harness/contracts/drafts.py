"""The contract of a draft source: tokens without layers, when to verify, and what came of it.

A draft is made of the tokens at which a strategy exited, of those that named layers alone drafted, and of those that a
source proposed without running a layer. The next pass that goes deep verifies all of it: it computes what full depth
would have said at each place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from harness.contracts.heads import LM_HEAD, HeadChoice
from harness.contracts.models import ModelInfo
from harness.contracts.strategies import Batch, ExitView

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Draft:
    """One row and its tokens that wait to be verified.

    A plug-in's rule is lent tuples, of what there is when it is asked: ask anew rather than keep one.
    """

    row: int  # row of the batch
    prompt: Sequence[int]  # tokens of its prompt
    token_ids: Sequence[int]  # its verified tokens, at least one
    tokens: Sequence[int] = field(default_factory=list)  # its draft: what follows them unless full depth disagrees
    # decoder layers that ran before each of those was drafted; 0 where a source proposed it
    layers: Sequence[int] = field(default_factory=list)
    # of each token that layers drafted, under the head that chose it; empty unless a rule needs them. What a source
    # proposed has none and comes last
    probabilities: Sequence[float] = field(default_factory=list)
    beside: int = 0  # tokens of other rows that the row's next pass takes along, as far as is known when it begins


class DraftView(ExitView, Protocol):
    """A view of lossless decoding: every one that a strategy or a draft rule sees there."""

    def gathered(self, parts: Sequence[tuple[ExitView, Sequence[int]]]) -> DraftView:
        """Return rows of several views as one, so that one product of a head reads them all.

        ``parts`` are views, of any exit points, and places among their rows. What they read of a head is not reused.
        """

    def through(self, layers: Sequence[int], states: Tensor | None = None) -> DraftView:
        """Return these rows after further layers alone, as a view that the head reads without a shortcut.

        Each attends, by itself, to the keys and values that the cache holds before its position, and leaves none. The
        layers are charged.

        Args:
            layers: which, 0-based, in the order in which they run.
            states: taken in place of the rows' own, ``[n, hidden_size]``.
        """


class DraftRule:
    """Decision maker of one batch. Subclass it and override what differs; a strategy's own rule may be one, too.

    Without any, tokens are drafted where a strategy exits, and verified when it lets one go deep.

    Attributes:
        needs_probabilities: whether it reads :attr:`Draft.probabilities`, which are computed only then.
        knows_drafts_alone: of a strategy's own rule, whether it ends drafts by what stands in a :class:`Draft` and
            nothing that it saw at exits, so that a trace of tokens suffices to replay it (``harness sweep``).
    """

    needs_probabilities: ClassVar[bool] = False
    knows_drafts_alone: ClassVar[bool] = False

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        """Return tokens to go on with, ``max_tokens`` (at least 1) at most, none to let the strategy draft.

        A list or a tuple: a generator, a tensor or ``None`` is refused, and what is more than ``max_tokens`` is cut.
        Asked before each token of a row that is not about to be verified. What is proposed is verified at once.
        """
        return ()

    def drafting_layers(self, draft: Draft) -> Sequence[int]:
        """Return the layers that alone draft the next token, 0-based and ascending; none to let the strategy's exits.

        Asked where nothing was proposed. The LM head reads the state behind the last of them, and no rule is asked on
        the way. Other layers keep no keys and values of the token: verification runs it through all of them, from the
        first on, and writes what these left anew.
        """
        return ()

    def verify_now(self, draft: Draft) -> bool:
        """Return whether the draft, at least one token, ends here. Asked after each token that layers drafted."""
        return False

    def watched(self, draft: Draft) -> Sequence[int]:
        """Return the layers at which it wants to :meth:`watch` the draft's verification.

        Asked when a pass begins that takes the row deep without asking its strategy; of the last layer again where any
        pass ends.
        """
        return ()

    def watch(self, view: DraftView) -> None:
        """See a verification on its way: a view whose rows are places, of each watched row all that are that deep.

        ``view.rows`` and ``view.position`` say whose and where; a draft's token joins after the layer that drafted it.
        At the last layer the rows are those of one draft, and their logits those that verify it, at no cost. Nothing
        is computed until it is asked for, which may be as late as :meth:`verified`.
        """

    def verified(self, draft: Draft, accepted: int) -> None:
        """Learn how many of the draft's tokens stand; ``token_ids`` has them already, and the one that follows."""


class DraftSource(Protocol):
    """A frozen dataclass whose fields are its options, as a strategy's are; registered in ``harness.drafts``.

    Attributes:
        proposes: whether it proposes tokens; one that only ends the drafts of exits drafts nothing without them.
        recalls: whether it draws on what was decoded for the same owner before (:attr:`Batch.known`).
    """

    proposes: ClassVar[bool] = True
    recalls: ClassVar[bool] = False

    def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
        """Return the rule of one batch."""


@dataclass(frozen=True, slots=True)
class Lossless:
    """How to decode losslessly."""

    draft_max: int = 16  # tokens of a draft at most, at least 1; then it is verified
    # propose tokens and end drafts, asked in this order; none where only the strategy's exits draft
    sources: tuple[DraftSource, ...] = ()
    # reads the tokens that exits draft, unless the strategy has evaluated the LM head already. Verification reads the
    # LM head
    head: HeadChoice = LM_HEAD
