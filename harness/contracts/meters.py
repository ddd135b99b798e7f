"""The contract of an energy meter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """A meter's reading of one window.

    Attributes:
        energy_j: joules, ``None`` when there is no number.
        source: the meter's own.
        scope: what the number covers, for example ``gpu board``, ``cpu package``, ``process``.
        duration_s: window length by a monotonic clock.
        cpu_time_s: CPU seconds of this process inside the window.
        sensor_period_s: how often the sensor ticks; ``None`` when there is no sensor.
        flags: quality remarks, for example ``short-window``; empty when nothing is wrong.
        reason: why ``energy_j`` is ``None``.
    """

    energy_j: float | None
    source: str
    scope: str
    duration_s: float
    cpu_time_s: float
    sensor_period_s: float | None = None
    flags: tuple[str, ...] = ()
    reason: str | None = None


@runtime_checkable
class Meter(Protocol):
    """Reads energy over windows; one window at a time.

    A registered meter is a class that takes the keywords ``device`` and ``tdp_w``, and may offer
    ``probe(device) -> str | None``: why it cannot be used here, with the remedy. One that also takes
    ``argument`` gets what follows the colon in ``--energy NAME:ARGUMENT``. One that reads a sensor while the work runs
    says so with ``measured = True``; without it, its numbers are estimates everywhere (:func:`is_measured`).
    """

    @property
    def source(self) -> str:
        """Name of its numbers in tables: a sensor's name, ``estimate``, or ``none`` for no numbers."""

    @property
    def description(self) -> str:
        """One line for the manifest and the table's footer: sensor, scope, and how a guess is made."""

    @property
    def sensor_period_s(self) -> float | None:
        """How often the sensor ticks, seconds; ``None`` when windows may be of any length."""

    def begin(self) -> None:
        """Open the window. The device is synchronised first."""

    def end(self) -> EnergyReading:
        """Close the window. The device is synchronised first."""

    def close(self) -> None:
        """Release the sensor."""


def is_measured(meter: Meter) -> bool:
    """Return whether a sensor measures this meter's numbers, in this run; a meter that does not say so guesses."""
    return bool(getattr(meter, "measured", False))
