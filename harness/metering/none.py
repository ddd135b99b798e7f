"""No energy at all: for runs that need only time, and for machines where a guess would mislead."""

from __future__ import annotations

from harness.contracts import EnergyReading
from harness.metering.clock import SYSTEM_CLOCK, Clock, Elapsed
from harness.metering.window import WindowedMeter

__all__ = ["NoMeter"]


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
