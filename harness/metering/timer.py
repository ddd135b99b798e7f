"""The clock behind every latency: how fine it is, and whether it ever runs backwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["TimerReading", "measure_timer"]

READS = 20_000


@dataclass(frozen=True, slots=True)
class TimerReading:
    """How ``time.perf_counter`` behaves here.

    Attributes:
        name: the system's clock behind it, for example ``clock_gettime(CLOCK_MONOTONIC)``.
        resolution_s: smallest step seen between two readings, what it takes to read it included; ``None`` if it
            never moved.
        backward_steps: readings that were earlier than the one before; must be 0.
    """

    name: str
    resolution_s: float | None
    backward_steps: int


def measure_timer(read: Callable[[], float] = time.perf_counter, reads: int = READS) -> TimerReading:
    """Read the clock in a row, some milliseconds long.

    Args:
        read: the clock, seconds.
        reads: how often.
    """
    values = [read() for _ in range(reads)]
    steps = [later - earlier for earlier, later in pairwise(values)]
    forward = [step for step in steps if step > 0]
    name = time.get_clock_info("perf_counter").implementation
    return TimerReading(name, min(forward, default=None), sum(step < 0 for step in steps))
