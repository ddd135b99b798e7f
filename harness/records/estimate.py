"""One number of a summary with what is known of its uncertainty."""

from __future__ import annotations

from pydantic import Field

from harness.records.record import Record

__all__ = ["Estimate", "Interval"]

Interval = tuple[float, float]


class Estimate(Record):
    """The value of a metric at one operating point; what was not determined is ``None``, never zero.

    Attributes:
        value: in the metric's unit.
        low, high: 95 % interval, both or neither.
        p: p-value of a paired permutation test of "no difference to full depth".
        p_holm: the same after Holm's correction over the operating points of the table.
        n: independent units it rests on (pairs, for a comparison).
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    n: int | None = Field(default=None, ge=0)

    @property
    def interval(self) -> Interval | None:
        """Both bounds, or ``None``."""
        return None if self.low is None or self.high is None else (self.low, self.high)
