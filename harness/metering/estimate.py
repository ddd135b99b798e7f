"""A labelled guess for machines without a sensor: CPU time × a share of the processor's power.

The number is a function of CPU time and of nothing else: it cannot tell a memory-bound token from a
compute-bound one and it adds no evidence to a speed-up. Its source is ``estimate`` in every record so
that it is never ranked beside measured joules.

No energy at all: for runs that need only time, and for machines where a guess would mislead.
"""

from __future__ import annotations

import os

from harness.contracts import EnergyReading
from harness.metering.clock import SYSTEM_CLOCK, Clock, Elapsed
from harness.metering.window import WindowedMeter

DEFAULT_W_PER_LOGICAL_CORE = 4.0
"""Watts of one busy logical core when no TDP is given.

CodeCarbon's value for a processor it does not know (``DEFAULT_POWER_PER_CORE`` in its
``core/cpu.py``), and near the 350 W ÷ 96 threads of present server parts. It is a figure per core and
not per package because a virtual machine sees only a few cores of a package: dividing a package's TDP
by those few would charge them for all the others.
"""


class Estimate(WindowedMeter):
    """A labelled guess: CPU seconds of this process × TDP share of a logical core.

    ``energy_j = cpu_time_s × tdp_w / logical cores``. CPU seconds are user + system time of all
    threads of this process (``time.process_time``), without child processes; idle power, memory and
    other processes are left out. On a GPU the CPU time says nothing of the board, so the energy is
    ``None`` there.

    Args:
        device: torch device, synchronised at both edges.
        tdp_w: power of all logical cores that the operating system shows, watts; ``None`` for
            ``DEFAULT_W_PER_LOGICAL_CORE`` each.
        clock: what times the windows.
    """

    source = "estimate"
    scope = "process (CPU time × TDP share)"

    def __init__(self, *, device: str, tdp_w: float | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(device, clock=clock)
        self._cores = os.cpu_count() or 1
        self._assumed = tdp_w is None
        self._tdp_w = DEFAULT_W_PER_LOGICAL_CORE * self._cores if tdp_w is None else tdp_w

    @classmethod
    def probe(cls, device: str) -> str | None:
        """Return why this meter cannot be used: never, so ``None`` (on a GPU its readings are ``None``)."""
        return None

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
        return EnergyReading(
            energy_j=elapsed.cpu_time_s * self._tdp_w / self._cores if on_cpu else None,
            source=self.source,
            scope=self.scope,
            duration_s=elapsed.duration_s,
            cpu_time_s=elapsed.cpu_time_s,
            reason=None if on_cpu else f"an estimate from CPU time says nothing of the device '{self._device}'",
        )


class NoMeter(WindowedMeter):
    """No energy: window length and CPU time only.

    Args:
        device: torch device, synchronised at both edges.
        tdp_w: not used.
        clock: what times the windows.
    """

    source = "none"

    def __init__(self, *, device: str, tdp_w: float | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(device, clock=clock)

    @classmethod
    def probe(cls, device: str) -> str | None:
        """Return why this meter cannot be used: never, so ``None``."""
        return None

    @property
    def description(self) -> str:
        """One line for the manifest."""
        return "energy not measured; window length by a monotonic clock"

    def _end_sensor(self, elapsed: Elapsed) -> EnergyReading:
        return EnergyReading(
            energy_j=None,
            source=self.source,
            scope="",
            duration_s=elapsed.duration_s,
            cpu_time_s=elapsed.cpu_time_s,
            reason="energy was not asked for (--energy none)",
        )
