"""Which drafted tokens stood, by what drafted them and by kind: as it stands in ``summary.json``."""

from __future__ import annotations

from harness.records.estimate import Estimate
from harness.records.record import Count, Record

__all__ = ["EXIT", "Acceptance"]

EXIT = "exit"
"""The source of tokens that exits drafted."""


class Acceptance(Record):
    """Of some drafted tokens of one operating point, how many stood.

    Attributes:
        source: ``exit``, or the name of the draft source; ``None`` for all.
        layer: decoder layers that ran before they were drafted; ``None`` for all, and where a source proposed them.
        kind: of code (:mod:`reports.completions.token_kinds`); ``None`` for all, those of no kind included.
        drafted, accepted: tokens.
        share: the second over the first, with its interval over blocks of samples; none where too few blocks
            drafted such a token, and where nearly all or none stood.
    """

    source: str | None = None
    layer: Count | None = None
    kind: str | None = None
    drafted: Count
    accepted: Count
    share: Estimate
