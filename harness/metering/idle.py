"""The machine's draw while it waits, with the model loaded: the floor under every window's energy."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.contracts import Meter
from harness.metering.contamination import ObservedWindow, Surroundings, observed
from harness.metering.counters import SHORT_BELOW_PERIODS

__all__ = ["IDLE_S", "QUIET_S", "default_idle_s", "rest"]

IDLE_S = 2.0
"""Shortest idle window with a sensor unless given, seconds."""

QUIET_S = 0.5
"""Wait before the left edge: worker threads of the work before may spin on for a while (0.2 s is usual)."""


def default_idle_s(period_s: float | None) -> float:
    """Return how long an idle window lasts unless given: 0, which is none, without a sensor.

    The idle power of an estimate, or of no meter at all, would mean nothing.
    """
    return 0.0 if period_s is None else max(IDLE_S, SHORT_BELOW_PERIODS * period_s)


def rest(
    meter: Meter, surroundings: Surroundings, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> ObservedWindow:
    """Return a window of so many seconds in which this process does nothing.

    Raises:
        MeterError: as :func:`harness.metering.metered`.
    """
    sleep(QUIET_S)
    with observed(meter, surroundings) as window:
        sleep(seconds)
    return window
