"""The life of a measurement window, the same for every built-in meter.

One window at a time. The device is synchronised before both edges, so that exactly the work between
:meth:`WindowedMeter.begin` and :meth:`WindowedMeter.end` is counted; the sensor is read just outside
the clock. A window whose work or sensor failed is closed all the same: the next ``begin`` works.

Not promised: nesting, threads (one meter belongs to one thread), and CPU time of child processes.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from harness.contracts import EnergyReading, Meter
from harness.errors import MeterError

__all__ = ["Elapsed", "MeteredWindow", "WindowedMeter", "metered", "synchronise"]


@dataclass(frozen=True, slots=True)
class Elapsed:
    """How long a window was.

    Attributes:
        duration_s: by a monotonic clock.
        cpu_time_s: user and system CPU seconds of all threads of this process; child processes are
            not included.
    """

    duration_s: float
    cpu_time_s: float


@dataclass(slots=True)
class MeteredWindow:
    """What :func:`metered` yields.

    Attributes:
        reading: ``None`` while the window is open, and for good if its work raised.
    """

    reading: EnergyReading | None = None


@contextmanager
def metered(meter: Meter) -> Iterator[MeteredWindow]:
    """Run the body of the ``with`` statement in one window of ``meter``.

    The window is closed when the body raises, too; then the body's exception goes on and there is
    no reading.

    Raises:
        MeterError: the sensor failed at an edge, or a window is open already.
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
    window.reading = meter.end()


def synchronise(device: str) -> None:
    """Wait until the device has done what was queued; returns at once unless it is a CUDA device."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


class WindowedMeter(ABC):
    """A meter that has its window edges from here and adds a sensor.

    Args:
        device: torch device on which the measured work runs.
    """

    source = "none"

    def __init__(self, device: str) -> None:
        self._device = device
        self._started: tuple[float, float] | None = None
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
        """Open the window. The device is synchronised first.

        Raises:
            MeterError: a window is open already, the meter was closed, or the sensor failed.
        """
        if self._released:
            raise MeterError(f"the '{self.source}' meter was closed; open a new one.")
        if self._started is not None:
            raise MeterError(f"a window of the '{self.source}' meter is open already; end it before the next begins.")
        synchronise(self._device)
        self._begin_sensor()
        self._started = (time.process_time(), time.perf_counter())

    def end(self) -> EnergyReading:
        """Close the window. The device is synchronised first.

        Raises:
            MeterError: no window is open, or the sensor failed.
        """
        if self._started is None:
            raise MeterError(f"no window of the '{self.source}' meter is open; begin one before ending it.")
        (cpu_started, started), self._started = self._started, None
        synchronise(self._device)
        stopped, cpu_stopped = time.perf_counter(), time.process_time()
        return self._end_sensor(Elapsed(stopped - started, cpu_stopped - cpu_started))

    def close(self) -> None:
        """Release the sensor; an open window is dropped. Closing twice is allowed."""
        self._started = None
        self._released = True

    def _begin_sensor(self) -> None:  # noqa: B027 - most meters have no sensor to start
        """Read the sensor at the left edge; the clock starts when this returns."""

    @abstractmethod
    def _end_sensor(self, elapsed: Elapsed) -> EnergyReading:
        """Read the sensor at the right edge; the clock has stopped already."""
