"""The life of a measurement window, the same for every built-in meter; readings of any meter leave here sound.

One window at a time, of one thread; the device is synchronised before both edges, the sensor read outside the clock.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from harness.contracts import EnergyReading, Meter
from harness.errors import MeterError
from harness.metering.clock import SYSTEM_CLOCK, Clock, Elapsed


@dataclass(slots=True)
class MeteredWindow:
    """The value that :func:`metered` yields."""

    reading: EnergyReading | None = None


@contextmanager
def metered(meter: Meter) -> Iterator[MeteredWindow]:
    """Run the body of the ``with`` statement in one window of ``meter``.

    The window is closed when the body raises, too; then the body's exception goes on and there is
    no reading.
    """
    window = MeteredWindow()
    finished = False
    meter.begin()
    try:
        yield window
        finished = True
    finally:
        if not finished:
            with suppress(MeterError):  # the body's exception is the one to report
                meter.end()
    window.reading = sound(meter.end())


def sound(reading: EnergyReading) -> EnergyReading:
    """Return a reading that records can hold, from any meter: no NaN, no infinity, nothing below zero."""
    for name, value in (("length", reading.duration_s), ("CPU time", reading.cpu_time_s)):
        if not math.isfinite(value) or value < 0:
            raise MeterError(
                f"the '{reading.source}' meter gave a window a {name} of {value} s. "
                "Use --energy estimate for a labelled guess, or --energy none."
            )
    energy_j = reading.energy_j
    if energy_j is None:
        return reading if reading.reason else replace(reading, reason=f"the '{reading.source}' meter gave no reason")
    if not math.isfinite(energy_j):
        return replace(reading, energy_j=None, reason=f"the '{reading.source}' meter read {energy_j}")
    if energy_j < 0:
        reason = f"the '{reading.source}' meter read {energy_j:.3g} J, which is below zero"
        return replace(reading, energy_j=None, flags=(*reading.flags, "negative-reading"), reason=reason)
    return reading


def synchronise(device: str) -> None:
    """Wait until the device, or each of several, has done what was queued; returns at once on a CPU."""
    for one in device.split(","):
        if one.startswith("cuda"):
            import torch

            torch.cuda.synchronize(one)


class WindowedMeter(ABC):
    """A meter that has its window edges from here and adds a sensor.

    Args:
        device: torch device on which the measured work runs, or several joined by commas.
        clock: what times the windows.
    """

    source, scope = "none", ""
    measured = False  # a sensor's meter says True

    def __init__(self, device: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._device = device
        self._clock = clock
        self._started: tuple[float, float] | None = None  # CPU and monotonic seconds
        self._released = False

    @property
    @abstractmethod
    def description(self) -> str:
        """One line for the manifest and the table's footer: sensor, scope, and how a guess is made."""

    @property
    def sensor_period_s(self) -> float | None:
        """How often the sensor ticks, seconds; ``None`` when windows may be of any length."""
        return None

    def begin(self) -> None:
        """Open the window. The device is synchronised first."""
        if self._released:
            raise MeterError(f"the '{self.source}' meter was closed; open a new one.")
        if self._started is not None:
            raise MeterError(f"a window of the '{self.source}' meter is open already; end it before the next begins.")
        synchronise(self._device)
        self._begin_sensor()
        self._started = self._clock.process_cpu_s(), self._clock.monotonic_s()  # the clock that times it is innermost

    def end(self) -> EnergyReading:
        """Close the window. The device is synchronised first."""
        if self._started is None:
            raise MeterError(f"no window of the '{self.source}' meter is open; begin one before ending it.")
        (cpu_s, monotonic_s), self._started = self._started, None
        synchronise(self._device)
        duration_s = self._clock.monotonic_s() - monotonic_s
        return self._end_sensor(Elapsed(duration_s, self._clock.process_cpu_s() - cpu_s))

    def _reading(
        self, elapsed: Elapsed, energy_j: float | None, reason: str | None = None, flags: tuple[str, ...] = ()
    ) -> EnergyReading:
        return EnergyReading(
            energy_j=energy_j,
            source=self.source,
            scope=self.scope,
            duration_s=elapsed.duration_s,
            cpu_time_s=elapsed.cpu_time_s,
            sensor_period_s=self.sensor_period_s,
            flags=flags,
            reason=reason,
        )

    def close(self) -> None:
        """Release the sensor; an open window is dropped. Closing twice is allowed."""
        self._started = None
        self._released = True

    def _begin_sensor(self) -> None:  # noqa: B027 - most meters have no sensor to start
        """Read the sensor at the left edge; the clock starts when this returns."""

    @abstractmethod
    def _end_sensor(self, elapsed: Elapsed) -> EnergyReading:
        """Read the sensor at the right edge; the clock has stopped already."""
