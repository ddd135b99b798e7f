"""One number of a summary with what is known of its uncertainty."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

MISSING = "–"
"""How what was not determined is written."""
TOO_FEW = "too few"

Interval = tuple[float, float]
_Count = Annotated[int | None, Field(ge=0)]


class NoInterval(StrEnum):
    """Why a comparison has no interval; it is not tested either."""

    FEW_PAIRS = "too few pairs"
    """Independent units, blocks of samples, below 5."""
    FEW_SAMPLES = "too few samples"
    """A difference of scores of fewer than 50 samples."""
    FEW_DIFFERING = "too few samples that differ"
    """A difference of scores that is 0 in all but 7 samples or fewer."""
    UNDEFINED = "costs that have no ratio"
    """A total of 0, or a negative cost."""
    FLAGGED = "most windows were disturbed, so that no ratio is told"
    """Something else moved the machine in most windows of one of the two sides."""
    SAME_WORK = "no layer was left out, so that no gain is claimed"
    """A gain over full depth by a rule that did all that full depth does."""
    ESTIMATED = "an estimate made of the time, which it would repeat"
    """An energy that no sensor measured."""

    @property
    def brief(self) -> str:
        """What stands in brackets where an interval would."""
        return _BRIEF.get(self, TOO_FEW)


_BRIEF = {
    NoInterval.UNDEFINED: MISSING,
    NoInterval.FLAGGED: "flagged",
    NoInterval.SAME_WORK: "same work",
    NoInterval.ESTIMATED: "estimate",
}


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="ignore", allow_inf_nan=False))
class Estimate:
    """The value of a metric at one operating point; what was not determined is ``None``, never zero.

    A summary has hundreds, and with slots they take a fifth of the memory of a record.

    Attributes:
        value: in the metric's unit.
        low, high: 95 % interval, both or neither.
        p: p-value of a paired permutation test of "no difference to full depth". p_holm: after Holm's correction.
        n: independent units it rests on (for a comparison, blocks of samples).
        no_interval: why a comparison has no interval.
        samples, differing: of a paired difference: samples compared, and those whose difference is not 0.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    n: _Count = None
    no_interval: NoInterval | None = None
    samples: _Count = None
    differing: _Count = None

    @classmethod
    def of(cls, value: float, interval: Interval | NoInterval | None, **more: Any) -> Estimate:
        """Make one of a value and its interval, or the reason why it has none."""
        if isinstance(interval, tuple):
            return cls(value=value, low=interval[0], high=interval[1], **more)
        return cls(value=value, no_interval=interval, **more)

    @property
    def interval(self) -> Interval | None:
        """Both bounds, or ``None``."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def text(self, number: str = "{:.3g}", bound: str | None = None, factor: float = 1.0) -> str:
        """Return ``value [low, high]``, or the value and that it has no interval; the only place that writes one."""
        brackets = self.brackets(number if bound is None else bound, factor)
        text = written(number, self.value * factor)
        return f"{text} {brackets}" if brackets else text

    def brackets(self, bound: str, factor: float = 1.0) -> str:
        """Return ``[low, high]``, why there is none in a word, or nothing where neither is known."""
        if bound and self.interval is not None:
            return f"[{', '.join(written(bound, end * factor) for end in self.interval)}]"
        return f"[{self.no_interval.brief}]" if bound and self.no_interval is not None else ""


def written(form: str, number: float) -> str:
    """Return a number as a table shows it, with a minus sign and not a hyphen."""
    text = form.format(number)
    return f"−{text[1:]}" if text.startswith("-") else text
