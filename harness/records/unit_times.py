"""Durations of the parts of decoding on the machine of a run, in seconds: what strategies and draft rules were told."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from harness.contracts import UnitCosts
from harness.records.record import Positive, Record

__all__ = ["DraftTimes", "UnitTimes"]


class DraftTimes(Record):
    """Duration of drafting beside layers, in seconds.

    Attributes:
        check_s: one check of the strategy, whatever it reads there: asked for, or made inside compiled layers where one
            row under a KV policy that hides nothing has it made there.
        read_s: taking the token that an exit drafts, shortcut included; next to nothing where a check has read it.
    """

    check_s: float
    read_s: float


class UnitTimes(Record):
    """Measured durations of a model in one weights format, in seconds.

    Attributes:
        positions: that the timed tokens attended to.
        rows: of the pass that several tokens shared.
        layer_s: one decoder layer for one token.
        head_s: the LM head for one, its best token included.
        layer_row_s, head_row_s: the same for one more row of the same pass.
        drafts: by who drafts: the strategy's class with the heads that it reads, and what reads its drafts.
    """

    positions: Positive
    rows: Positive
    layer_s: float
    head_s: float
    layer_row_s: float
    head_row_s: float
    drafts: dict[str, DraftTimes] = Field(default_factory=dict)

    def costs(self, draft: DraftTimes, asked_at: Sequence[int] = ()) -> UnitCosts:
        """Return the costs of decoding, in seconds, with what drafting adds by a strategy asked at some layers."""
        return UnitCosts(
            layer=self.layer_s,
            head=self.head_s,
            shortcut=0.0,
            source=f"seconds on this machine, {self.positions} positions read",
            draft_head=draft.read_s,
            check=draft.check_s,
            asked_at=tuple(asked_at),
            layer_row=self.layer_row_s,
            head_row=self.head_row_s,
        )
