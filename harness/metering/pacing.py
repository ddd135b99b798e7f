"""How long windows must be for their sensor, and when a machine is warm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.metering.counters import SHORT_BELOW_PERIODS

__all__ = ["WARMUP_DRIFT", "WARMUP_PASSES", "drift", "full_depth_window_s", "samples_per_block", "settled"]

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
    """Return how many samples share a window: one batch, or as many as the sensor needs.

    Args:
        period_s: how often the sensor ticks; ``None`` when windows may be of any length.
        passes_s: times of full depth over one batch; the shortest decides.
        batch_size: samples decoded together.
    """
    shortest_s = min(passes_s, default=0.0)
    if period_s is None or shortest_s <= 0:
        return batch_size
    return batch_size * max(1, math.ceil(full_depth_window_s(period_s) / shortest_s))


def drift(passes_s: Sequence[float]) -> float | None:
    """Return slowest over fastest of the last three passes, less 1; ``None`` with fewer, or where one took no time."""
    last = passes_s[-3:]
    return max(last) / min(last) - 1 if len(last) == 3 and min(last) > 0 else None


def settled(passes_s: Sequence[float]) -> bool:
    """Whether the last three passes differ by less than the allowed drift."""
    found = drift(passes_s)
    return found is not None and found < WARMUP_DRIFT
