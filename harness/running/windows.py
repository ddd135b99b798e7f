"""From an observed window to its record, and whether it has to be measured again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness.metering import CONTAMINATED, ObservedWindow
from harness.records import WindowRecord

__all__ = ["ATTEMPTS", "durations", "is_contaminated", "judged", "window_record"]

ATTEMPTS = 3
"""How often ``--strict`` measures a contaminated window at most; the last time counts, with its flags."""


def window_record(observed: ObservedWindow, *, timed: bool = True, **facts: Any) -> WindowRecord:
    """Return the record of a closed window.

    Args:
        observed: what was read at its edges.
        timed: it was a measurement; otherwise neither times nor what disturbed them are recorded.
        facts: the fields that say what ran in it; see :class:`harness.records.WindowRecord`.
    """
    reading, contamination = observed.reading, observed.contamination
    assert reading is not None, "the window is open, or its work raised"
    assert contamination is not None
    if not timed:
        return WindowRecord(
            **facts, duration_s=None, cpu_time_s=None, energy_source=reading.source, energy_reason=reading.reason
        )
    return WindowRecord(
        **facts,
        duration_s=reading.duration_s,
        cpu_time_s=reading.cpu_time_s,
        foreign_cpu_s=contamination.foreign_cpu_s,
        stolen_cpu_s=contamination.stolen_cpu_s,
        energy_j=reading.energy_j,
        energy_source=reading.source,
        energy_scope=reading.scope,
        sensor_period_s=reading.sensor_period_s,
        flags=(*reading.flags, *contamination.flags),
        energy_reason=reading.reason,
    )


def durations(windows: Iterable[WindowRecord]) -> list[float]:
    """Return the seconds of those windows that were timed."""
    return [window.duration_s for window in windows if window.duration_s is not None]


def is_contaminated(window: WindowRecord) -> bool:
    """Whether something else on the machine disturbed it."""
    return not CONTAMINATED.isdisjoint(window.flags)


def judged(window: WindowRecord, *, strict: bool, attempts: int) -> WindowRecord:
    """Return the record, marked superseded if it is to be measured again.

    Args:
        window: as it was measured.
        strict: contaminated windows are measured again.
        attempts: how often this was measured before and superseded.
    """
    again = strict and is_contaminated(window) and attempts + 1 < ATTEMPTS
    return window.model_copy(update={"superseded": True}) if again else window
