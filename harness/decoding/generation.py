"""The result of decoding one row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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

    def first_stops(self, num_layers: int) -> list[int]:
        """Return after how many layers each token left, of ``num_layers``: where an exit drafted it, if that stands."""
        if not self.lossless:
            return list(self.exit_layers)
        return [at if kept and at else num_layers for at, kept in zip(self.drafted_at, self.accepted, strict=True)]
