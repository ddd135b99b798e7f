"""What the completions cost in energy: per request and per token, gross and net of idle, and at what power.

Energy is a total over windows and exists only when every window has a number from one source: a missing reading
makes it ``None``, never a smaller total, and an estimate and a measurement are never added. **Net of idle** takes off
what the machine draws with the model loaded and nothing running, measured in idle windows of the same run and sensor;
an estimate made of CPU time has no idle power, so there is none. **Mean power** tells whether energy is evidence of
its own: where all rows draw the same, energy saved is time saved (:mod:`reports.summary.notes` says so).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from harness.records import WindowRecord
from reports.statistics.intervals import ratio
from reports.summary.measured import Measured

__all__ = ["MIXED", "UNMEASURED", "energy", "has_energy", "idle_power_w"]

MIXED = "mixed"
UNMEASURED = frozenset({"none", "estimate", "replay", MIXED})
"""Sources that are no sensor, or not of this run."""


def energy(cell: Measured, idle: Sequence[WindowRecord]) -> dict[str, float | str | None]:
    """Return joules in total, per token and per request, power, and where all that comes from.

    Args:
        cell: the operating point.
        idle: the idle windows of the run (:func:`reports.summary.admission.idle_windows`).
    """
    source, total = _total(cell.windows.values())
    seconds = math.fsum(window.duration_s for window in cell.windows.values())
    tokens = sum(window.tokens for window in cell.windows.values())
    idle_w = idle_power_w(cell, idle)
    found: dict[str, float | str | None] = {"energy_source": source, "idle_power_w": idle_w}
    if total is not None:
        found |= {
            "energy_j": total,
            "energy_j_per_token": ratio(total, tokens),
            "energy_j_per_request": ratio(total, len(cell.samples)),
            "mean_power_w": ratio(total, seconds),
        }
        if idle_w is not None:
            found["energy_net_j_per_token"] = ratio(total - idle_w * seconds, tokens)
    return found


def has_energy(cell: Measured, baseline: Measured) -> bool:
    """Whether two operating points have an energy each, from one and the same source."""
    (source, here), (other, there) = _total(cell.windows.values()), _total(baseline.windows.values())
    return here is not None and there is not None and source == other


def idle_power_w(cell: Measured, idle: Sequence[WindowRecord]) -> float | None:
    """Return watts with nothing running, by the sensor that measured this operating point; ``None`` without one."""
    source, _ = _total(cell.windows.values())
    if source in UNMEASURED:
        return None
    read = [(window.energy_j, window.duration_s) for window in idle if window.energy_source == source]
    joules = [energy_j for energy_j, _ in read if energy_j is not None]
    return ratio(math.fsum(joules), math.fsum(seconds for energy_j, seconds in read if energy_j is not None))


def _total(windows: Iterable[WindowRecord]) -> tuple[str, float | None]:
    """Source and joules; no joules when a reading is missing or the sources differ."""
    windows = list(windows)
    sources = {window.energy_source for window in windows}
    source = MIXED if len(sources) > 1 else next(iter(sources), "none")
    readings = [window.energy_j for window in windows if window.energy_j is not None]
    complete = readings and len(readings) == len(windows) and source != MIXED
    return source, math.fsum(readings) if complete else None
