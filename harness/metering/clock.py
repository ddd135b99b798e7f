"""The two clocks that a window reads."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from harness.errors import MeterError


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
        cpu_time_s: user and system CPU seconds of all threads of this process; child processes are
            not included.

    Raises:
        MeterError: a clock ran backwards or gave no number: no window of this machine can be trusted.
    """

    duration_s: float
    cpu_time_s: float

    def __post_init__(self) -> None:
        for name, value in (("monotonic", self.duration_s), ("CPU", self.cpu_time_s)):
            wrong = f"gave no number ({value})" if not math.isfinite(value) else f"ran backwards by {-value:.3g} s"
            if not value >= 0 or value == math.inf:
                raise MeterError(
                    f"the {name} clock {wrong} inside a window. Look at the machine's clock source (on Linux "
                    "/sys/devices/system/clocksource/clocksource0/current_clocksource) before you measure on."
                )
