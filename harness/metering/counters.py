"""Faults of energy counters in words, how long windows must be for their sensor, and when a machine is warm.

A counter only ever grows, so a window's joules are the difference of two readings. Missing, negative, non-finite and
unmoved counters are ``None`` with a reason, never zero and never a smaller total. Not promised: a counter that went
round more than once within a window (the smallest RAPL range, 65.7 kJ, lasts 160 s at 400 W).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from harness.contracts import EnergyReading
from harness.errors import MeterError
from harness.metering.clock import SYSTEM_CLOCK, Clock, Elapsed
from harness.metering.window import WindowedMeter

INVALID_BELOW_PERIODS = 10
"""A window of fewer sensor periods has no energy: one tick more or less would move it by 10 % and more."""

SHORT_BELOW_PERIODS = 50
"""A window of fewer sensor periods is flagged ``short-window``: one tick moves it by more than 2 %."""

LARGEST_W = 2000.0
"""No single CPU package, memory bank or GPU board draws more: a wrap that would mean more is none."""


class Verdict(NamedTuple):
    """Reliability of counters over one window: their sum in joules, or why there is none."""

    energy_j: float | None
    reason: str | None = None
    flags: tuple[str, ...] = ()


def judge(
    joules: Mapping[str, float | None],
    *,
    source: str,
    period_s: float,
    duration_s: float,
    ranges_j: Mapping[str, float] | None = None,
) -> Verdict:
    """Return the energy of a window, or why it has none."""
    if not joules:
        return Verdict(None, reason=f"{source} gave no reading")
    total = 0.0
    for name, value in joules.items():
        if value is None or not math.isfinite(value):
            return Verdict(None, reason=f"the counter of {name} gave no reading")
        range_j = (ranges_j or {}).get(name)
        grown = _unwrapped(value, range_j, LARGEST_W * max(duration_s, INVALID_BELOW_PERIODS * period_s))
        if grown is None:
            flag, did = ("negative-reading", "ran backwards") if value < 0 else ("counter-jump", "jumped")
            cause = "it wrapped, and its range is not known" if range_j is None else "no wrap explains it"
            return Verdict(None, f"the counter of {name} {did} ({value:.3g} J): {cause}", (flag,))
        total += grown
    periods = duration_s / period_s
    if periods < INVALID_BELOW_PERIODS:
        limit_s = INVALID_BELOW_PERIODS * period_s
        reason = f"a window of {duration_s:.3g} s is shorter than 10 sensor periods ({limit_s:.3g} s)"
        return Verdict(None, reason, ("invalid-window",))
    if total == 0:
        return Verdict(None, f"the {source} counter did not move in {duration_s:.3g} s", ("stuck-counter",))
    return Verdict(total, flags=("short-window",) if periods < SHORT_BELOW_PERIODS else ())


class CounterMeter(WindowedMeter):
    """A meter whose sensor is a set of counters; subclasses read them at both edges."""

    period_s = 1.0

    def __init__(self, device: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(device, clock=clock)
        self._ranges_j: Mapping[str, float] = {}

    @property
    def sensor_period_s(self) -> float | None:
        """How often the counters tick, seconds."""
        return self.period_s

    def _failure(self, what: str, words: str) -> MeterError:
        return MeterError(
            f"the {self.source} sensor {what}: {words.rstrip('.')}. "
            "Use --energy estimate for a labelled guess, or --energy none."
        )

    @abstractmethod
    def _end_counters(self) -> Mapping[str, float | None]:
        """Return joules by counter name since the window began; ``None`` for a counter that gave nothing."""

    def _end_sensor(self, elapsed: Elapsed) -> EnergyReading:
        verdict = judge(
            self._end_counters(),
            source=self.source,
            period_s=self.period_s,
            duration_s=elapsed.duration_s,
            ranges_j=self._ranges_j,
        )
        return self._reading(elapsed, *verdict)


def _unwrapped(value: float, range_j: float | None, largest_j: float) -> float | None:
    """Return what a counter has counted; ``None`` if its difference cannot be that.

    With a known range: one wrap too few in the difference makes it negative, one too many (counted late, by a helper
    process) adds a whole range.
    """
    if range_j is None:
        return value if value >= 0 else None
    return next((grown for grown in (value, value + range_j, value - range_j) if 0 <= grown <= largest_j), None)


WARMUP_PASSES = 10
"""A machine that has not settled after so many passes is measured all the same, and the last one is flagged."""

WARMUP_DRIFT = 0.02
"""Slowest over fastest of three passes in a row, less 1, below which a machine is warm."""

SHORTEST_WINDOW_S = 1.0
LIKELY_SPEEDUP = 2.0
LARGEST_SPEEDUP = 4.0


def full_depth_window_s(period_s: float) -> float:
    """Return how long a window of full depth must be, so that those of early exits are long enough.

    An operating point that halves the time still gets 100 sensor periods and one second: 10 s with NVML's tick of
    100 ms, 1 s with RAPL's of 1 ms. One that quarters it still gets the 50 below which windows are flagged.
    """
    likely_s = LIKELY_SPEEDUP * max(SHORTEST_WINDOW_S, 2 * SHORT_BELOW_PERIODS * period_s)
    return max(likely_s, LARGEST_SPEEDUP * SHORT_BELOW_PERIODS * period_s)


def samples_per_block(period_s: float | None, passes_s: Sequence[float], batch_size: int) -> int:
    """Return how many samples share a window: one batch, or as many as the sensor needs."""
    shortest_s = min(passes_s, default=0.0)
    if period_s is None or shortest_s <= 0:
        return batch_size
    return batch_size * max(1, math.ceil(full_depth_window_s(period_s) / shortest_s))


def settled(passes_s: Sequence[float]) -> bool:
    """Whether the slowest of the last three passes over the fastest is within the allowed drift."""
    last = passes_s[-3:]
    return len(last) == 3 and min(last) > 0 and max(last) / min(last) - 1 < WARMUP_DRIFT
