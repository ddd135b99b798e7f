"""Meters without a sensor: a labelled guess from CPU time, and none at all.

The guess cannot tell a memory-bound token from a compute-bound one and adds no evidence to a speed-up; its source is
``estimate`` in every record, so that it is never ranked beside measured joules.
"""

from __future__ import annotations

import os

from harness.contracts import EnergyReading
from harness.metering.clock import SYSTEM_CLOCK, Clock, Elapsed
from harness.metering.window import WindowedMeter

DEFAULT_W_PER_LOGICAL_CORE = 4.0
"""Watts of one busy logical core when no TDP is given.

CodeCarbon's value for a processor it does not know, and near the 350 W ÷ 96 threads of present server parts. Per core,
because a virtual machine sees only a few cores of a package and must not be charged for all the others.
"""


class Estimate(WindowedMeter):
    """A labelled guess: CPU seconds of this process × TDP share of a logical core.

    ``energy_j = cpu_time_s × tdp_w / logical cores``, of all threads of this process without child processes; idle
    power, memory and other processes are left out. On a GPU the energy is ``None``.

    Args:
        device: torch device, synchronised at both edges.
        tdp_w: power of all logical cores, watts; ``None`` for ``DEFAULT_W_PER_LOGICAL_CORE`` each.
        clock: what times the windows.
    """

    source = "estimate"
    scope = "process (CPU time × TDP share)"

    def __init__(self, *, device: str, tdp_w: float | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(device, clock=clock)
        self._cores = os.cpu_count() or 1
        self._assumed = tdp_w is None
        self._tdp_w = DEFAULT_W_PER_LOGICAL_CORE * self._cores if tdp_w is None else tdp_w

    @property
    def description(self) -> str:
        """One line with the formula and the power assumed."""
        cores = f"{self._cores} logical core{'s' if self._cores > 1 else ''}"
        origin = (
            f"the default of {DEFAULT_W_PER_LOGICAL_CORE:g} W per logical core; --tdp-w changes it"
            if self._assumed
            else "as given"
        )
        return f"estimate, not measured: CPU seconds of this process × {self._tdp_w:g} W / {cores} ({origin})"

    def _end_sensor(self, elapsed: Elapsed) -> EnergyReading:
        on_cpu = all(one.startswith("cpu") for one in self._device.split(","))
        if on_cpu:
            return self._reading(elapsed, elapsed.cpu_time_s * self._tdp_w / self._cores)
        return self._reading(elapsed, None, f"an estimate from CPU time says nothing of the device '{self._device}'")


class NoMeter(WindowedMeter):
    """No energy: window length and CPU time only."""

    def __init__(self, *, device: str, tdp_w: float | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(device, clock=clock)

    @property
    def description(self) -> str:
        """One line for the manifest."""
        return "energy not measured; window length by a monotonic clock"

    def _end_sensor(self, elapsed: Elapsed) -> EnergyReading:
        return self._reading(elapsed, None, "energy was not asked for (--energy none)")
