"""The period of an energy counter, found by polling it.

Documentation says about 100 ms for NVML and about 1 ms for RAPL, which is what windows are sized by; drivers and
firmware differ, so the period is measured where there is a counter, and a verdict says when the two do not fit.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from harness.metering import rapl
from harness.metering.nvml import gpu_index

__all__ = ["TickReading", "measure_period", "measure_ticks", "open_counter"]

TICKS = 12
TIMEOUT_S = 1.5
FEWEST_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class TickReading:
    """How often a counter moves.

    Attributes:
        period_s: median time between two changes; ``None`` with a ``reason``.
        intervals: whole intervals seen.
        read_s: what one reading takes, on average: the period cannot be resolved below it. ``None`` without one.
        reason: why there is no period.
    """

    period_s: float | None
    intervals: int
    read_s: float | None
    reason: str | None = None


def measure_ticks(
    read: Callable[[], object],
    *,
    ticks: int = TICKS,
    timeout_s: float = TIMEOUT_S,
    now: Callable[[], float] = time.perf_counter,
) -> TickReading:
    """Poll a counter until it moved some times or time is up.

    The first interval is cut off by the beginning and does not count.

    Args:
        read: the counter, as anything that compares.
        ticks: whole intervals wanted.
        timeout_s: when to stop.
        now: the clock, seconds.
    """
    started = now()
    changes: list[float] = []
    last, reads, moment = read(), 1, started
    while len(changes) <= ticks and moment - started < timeout_s:
        value, moment = read(), now()
        reads += 1
        if value != last:
            changes.append(moment)
            last = value
    intervals = [later - earlier for earlier, later in pairwise(changes)]
    read_s = (moment - started) / reads
    if len(intervals) < FEWEST_INTERVALS:
        reason = f"the counter moved {len(changes)} times in {moment - started:.2g} s, too few to tell its period"
        return TickReading(None, len(intervals), read_s, reason)
    return TickReading(statistics.median(intervals), len(intervals), read_s)


def measure_period(source: str, device: str) -> TickReading:
    """Poll the counter of an available sensor; a counter that fails or is not there gives a reason, no period.

    Arguments as :func:`open_counter`.
    """
    from zeus.exception import ZeusBaseError

    try:
        counter = open_counter(source, device)
        if counter is None:
            return TickReading(None, 0, None, "its counter cannot be polled from here")
        return measure_ticks(counter)
    except (ZeusBaseError, RuntimeError, ValueError, OSError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        return TickReading(None, 0, None, f"its counter failed while it was polled: {first_line}")


def open_counter(source: str, device: str) -> Callable[[], object] | None:
    """Return a function that reads the raw counter behind an available sensor; ``None`` for one that cannot be polled.

    Args:
        source: ``nvml`` (millijoules), ``rapl`` (microjoules of the first package), or anything else, which has no
            counter that is known here.
        device: torch device, which says what GPU.
    """
    if source == "nvml":
        from zeus.device.gpu import get_gpus

        gpus, index = get_gpus(), gpu_index(device)
        return lambda: gpus.get_total_energy_consumption(index)
    if source == "rapl":
        counter = _package_counter()
        return None if counter is None else counter.read_bytes
    return None


def _package_counter() -> Path | None:
    """The first package's counter file; ``None`` where only zeus' daemon may read it."""
    for root in rapl.POWERCAP:
        for zone in sorted(root.glob("intel-rapl:*")):
            name, counter = zone / "name", zone / "energy_uj"
            if os.access(counter, os.R_OK) and name.read_text(encoding="utf-8").startswith("package"):
                return counter
    return None
