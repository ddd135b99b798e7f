"""Energy: which readings of windows count, and idle power.

Energy is a total over windows and exists only when every window has a number from one source: a missing reading
makes it ``None``, never a smaller total, and an estimate and a measurement are never added. **Net of idle** takes off
what the machine draws with the model loaded and nothing running, measured in idle windows of the same run and sensor;
an estimate made of CPU time has no idle power, so there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from harness.records import MeterRecord, WindowRecord
from harness.records.conditions import MIXED, REPLAY
from reports.statistics.intervals import ratio
from reports.summary.measured import Measured


def is_measured(source: str, meter: MeterRecord) -> bool:
    """Whether an energy was measured by a sensor, in this run."""
    return meter.measured and source == meter.source


def energy_origin(source: str) -> str:
    """Say in a few words where an energy comes from that no sensor of this run measured."""
    known = {"none": "not measured", REPLAY: "not of this run", MIXED: "of several sources"}
    known["estimate"] = "estimated from CPU time"
    return known.get(source, f"estimated by {source}")


def has_energy(cell: Measured, baseline: Measured) -> bool:
    """Whether two operating points have an energy each, from one and the same source."""
    (source, here), (other, there) = total(cell.windows.values()), total(baseline.windows.values())
    return here is not None and there is not None and source == other


def idle_power_w(cell: Measured, idle: Sequence[WindowRecord], meter: MeterRecord) -> float | None:
    """Return watts with nothing running, by the sensor that measured this operating point; ``None`` without one."""
    source, _ = total(cell.windows.values())
    if not is_measured(source, meter):
        return None
    read = [
        (window.energy_j, window.duration_s)
        for window in idle
        if window.energy_source == source and window.energy_j is not None and window.duration_s is not None
    ]
    return ratio(math.fsum(joules for joules, _ in read), math.fsum(seconds for _, seconds in read))


def total(windows: Iterable[WindowRecord]) -> tuple[str, float | None]:
    """Return source and joules; no joules when a reading is missing or the sources differ."""
    windows = list(windows)
    sources = {window.energy_source for window in windows}
    source = MIXED if len(sources) > 1 else next(iter(sources), "none")
    readings = [window.energy_j for window in windows if window.energy_j is not None]
    complete = readings and len(readings) == len(windows) and source != MIXED
    return source, math.fsum(readings) if complete else None
