"""What passes did that ended in a draft: the part of lossless decoding that is neither full depth nor its verifying."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records.record import Count

__all__ = ["DraftWork"]


@dataclass(frozen=True, slots=True)
class DraftWork:
    """Counts of such passes, as :class:`harness.records.SampleRecord` has them of all.

    Attributes:
        passes: how many; each drafted one token at an exit.
        layers_read, exit_checks, lm_head_evaluations, cheap_head_tokens: what they added to those counts.
    """

    passes: Count = 0
    layers_read: Count = 0
    exit_checks: Count = 0
    lm_head_evaluations: Count = 0
    cheap_head_tokens: Count = 0

    def __add__(self, other: DraftWork) -> DraftWork:
        return DraftWork(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def __sub__(self, other: DraftWork) -> DraftWork:
        return DraftWork(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))
