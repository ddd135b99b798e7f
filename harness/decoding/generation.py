"""What decoding one row yields, and the counts that cost attribution needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from harness.errors import ModelError
from harness.records.draft_work import DraftWork

__all__ = ["Discarded", "FinishReason", "Generation"]

FinishReason = Literal["stop", "eos", "length", "strategy"]


@dataclass(frozen=True, slots=True)
class Discarded:
    """Drafted tokens that do not stand: the one that full depth replaced, and those behind it.

    Attributes:
        place: of the first of them in the completion, 0-based.
        token_ids: the tokens.
        drafted_at: for each the decoder layers that ran before it was drafted, 0 where a source proposed it.
    """

    place: int
    token_ids: tuple[int, ...]
    drafted_at: tuple[int, ...]


@dataclass(slots=True)
class Generation:
    """One decoded row, filled while it runs.

    Attributes:
        token_ids: generated tokens; an end-of-sequence token is the last of them.
        exit_layers: decoder layers executed for each token.
        token_times_s: seconds from when its time began (the batch's start, or its arrival) to each token.
        finish_reason: why it ended: a stop rule, an end-of-sequence token, the limit of new tokens, or the strategy, of
            which nothing is among the tokens; ``None`` while it runs.
        stopped_by: name of the registered stop rule that ended it; empty for anything else.
        failure: why it could not go on (logits that are not finite, a stop rule that raised); what there is until then
            means nothing. ``None`` for a row that runs or has ended.
        exit_checks: times a strategy was asked about it.
        lm_head_evaluations: LM-head evaluations after prefill, the outputs' own included.
        layers_executed: decoder layers run after prefill, catch-up work of ``recompute`` included;
            without a cache, one layer over the whole prefix counts as one.
        layers_read: of those, a layer that several of its tokens ran in one pass counts once.
        kv_fill_layers: layers whose keys and values were filled from an exit hidden state.
        shortcut_evaluations: times an exit's linear map was applied.
        cheap_head_evaluations: times a cheap head read an exit.
        cheap_head_bytes: bytes of weights that those read, at batch 1.
        cheap_head_misses: exits whose token, by the LM head, was not the best one of the cheap head that was asked.
        cheap_head_tokens: tokens that a cheap head chose.
        lossless: whether its tokens are drafted and verified; all of them are then full depth's.
        draft: tokens that wait to be verified; none when it has ended.
        drafted_at: of lossless decoding, for each token the decoder layers that ran before a draft of its place was
            made, 0 where a source proposed it; ``None`` where there was no draft.
        accepted: of lossless decoding, for each token whether it is the draft's; else full depth said it.
        discarded: what verifications threw away, in order.
        drafts: tokens drafted, discarded ones included.
        verifications: passes that went deep.
        layers_discarded: decoder layers run for tokens that a verification discarded.
        drafting: what the passes did that drafted tokens at exits; of lossless decoding, as what follows.
        rolled_back: the same of those whose token did not stand.
        log_probabilities: natural log of each token's probability under the head that chose it; empty unless asked for.
    """

    token_ids: list[int] = field(default_factory=list)
    exit_layers: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stopped_by: str = ""
    failure: ModelError | None = None
    exit_checks: int = 0
    lm_head_evaluations: int = 0
    layers_executed: int = 0
    layers_read: int = 0
    kv_fill_layers: int = 0
    shortcut_evaluations: int = 0
    cheap_head_evaluations: int = 0
    cheap_head_bytes: int = 0
    cheap_head_misses: int = 0
    cheap_head_tokens: int = 0
    lossless: bool = False
    draft: list[int] = field(default_factory=list)
    drafted_at: list[int | None] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)
    discarded: list[Discarded] = field(default_factory=list)
    drafts: int = 0
    verifications: int = 0
    layers_discarded: int = 0
    drafting: DraftWork = field(default_factory=DraftWork)
    rolled_back: DraftWork = field(default_factory=DraftWork)
    log_probabilities: list[float] = field(default_factory=list)

    def first_stops(self, num_layers: int) -> list[int]:
        """Return after how many layers each token left, of ``num_layers``: where an exit drafted it, if that stands."""
        if not self.lossless:
            return list(self.exit_layers)
        return [at if kept and at else num_layers for at, kept in zip(self.drafted_at, self.accepted, strict=True)]
