"""Energy and bandwidth: what a window of work cost, and what the memory could have delivered.

Meters register under the entry-point group ``harness.meters``; :func:`open_meter` turns a name into
an open one. Importing this package touches no sensor and loads neither torch nor zeus.
"""

from __future__ import annotations

from harness.metering.bandwidth import measure_bandwidth
from harness.metering.choose import open_meter
from harness.metering.contamination import CONTAMINATED, ObservedWindow, Surroundings, observed
from harness.metering.window import metered

__all__ = [
    "CONTAMINATED",
    "ObservedWindow",
    "Surroundings",
    "measure_bandwidth",
    "metered",
    "observed",
    "open_meter",
]
