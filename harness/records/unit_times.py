"""What parts of decoding take on the machine of a run, in seconds: what strategies and draft rules were told."""

from __future__ import annotations

from pydantic import Field

from harness.records.record import Positive, Record

__all__ = ["DraftTimes", "UnitTimes"]


class DraftTimes(Record):
    """What drafting takes beside layers, in seconds.

    Attributes:
        check_s: one check of the strategy, whatever it reads there: asked for, or made inside compiled layers where one
            row under a KV policy that hides nothing has it made there.
        read_s: taking the token that an exit drafts, shortcut included; next to nothing where a check has read it.
    """

    check_s: float
    read_s: float


class UnitTimes(Record):
    """What was measured of a model in one weights format, in seconds.

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
