"""The two clocks that a window reads, behind a Protocol so that a test can turn them by hand."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

from harness.errors import MeterError


class Clock(Protocol):
    """The clock of a meter."""

    def monotonic_s(self) -> float:
        """Return seconds from an arbitrary start; they never run backwards on a sound machine."""

    def process_cpu_s(self) -> float:
        """Return user and system CPU seconds of all threads of this process, child processes left out."""


class SystemClock:
    """The operating system's clocks."""

    def monotonic_s(self) -> float:
        """Return ``time.perf_counter()``, which on Linux is CLOCK_MONOTONIC."""
        return time.perf_counter()

    def process_cpu_s(self) -> float:
        """Return ``time.process_time()``."""
        return time.process_time()


SYSTEM_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Elapsed:
    """How long a window was.

    Attributes:
        duration_s: by a monotonic clock.
        cpu_time_s: user and system CPU seconds of all threads of this process; child processes are
            not included.
    """

    duration_s: float
    cpu_time_s: float


@dataclass(frozen=True, slots=True)
class Instant:
    """Both clocks, read at one edge of a window.

    Attributes:
        monotonic_s, cpu_s: see :class:`Clock`.
    """

    monotonic_s: float
    cpu_s: float

    @classmethod
    def left_edge(cls, clock: Clock) -> Instant:
        """Read the clocks where a window begins: the monotonic one last."""
        cpu_s = clock.process_cpu_s()
        return cls(clock.monotonic_s(), cpu_s)

    @classmethod
    def right_edge(cls, clock: Clock) -> Instant:
        """Read the clocks where a window ends: the monotonic one first."""
        monotonic_s = clock.monotonic_s()
        return cls(monotonic_s, clock.process_cpu_s())

    def until(self, end: Instant) -> Elapsed:
        """Return the time from here to a later instant.

        Raises:
            MeterError: a clock ran backwards or gave no number: no window of this machine can be trusted.
        """
        elapsed = Elapsed(end.monotonic_s - self.monotonic_s, end.cpu_s - self.cpu_s)
        for name, value in (("monotonic", elapsed.duration_s), ("CPU", elapsed.cpu_time_s)):
            if not math.isfinite(value):
                raise MeterError(f"the {name} clock gave no number ({value}), so the window has no length. {_REMEDY}")
            if value < 0:
                raise MeterError(f"the {name} clock ran backwards by {-value:.3g} s inside a window. {_REMEDY}")
        return elapsed


_REMEDY = (
    "Look at the machine's clock source (on Linux /sys/devices/system/clocksource/clocksource0/current_clocksource) "
    "before you measure on."
)
