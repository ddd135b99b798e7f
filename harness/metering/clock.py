"""The two clocks that a window reads."""

from __future__ import annotations

import time
from dataclasses import dataclass


class Clock:
    """The operating system's clocks; a test gives a meter one that it turns by hand."""

    def monotonic_s(self) -> float:
        """Return ``time.perf_counter()``, which on Linux is CLOCK_MONOTONIC."""
        return time.perf_counter()

    def process_cpu_s(self) -> float:
        """Return user and system CPU seconds of all threads of this process, child processes left out."""
        return time.process_time()


SYSTEM_CLOCK = Clock()


@dataclass(frozen=True, slots=True)
class Elapsed:
    """How long a window was.

    Attributes:
        duration_s: by a monotonic clock.
        cpu_time_s: user and system CPU seconds of all threads of this process, child processes left out.
    """

    duration_s: float
    cpu_time_s: float
