"""Windows of zeus' hardware counters, with everything that a counter may do wrong turned into words.

zeus (ML.ENERGY, https://ml.energy/zeus) reads NVML and RAPL. Facts of its 0.16 that shape this
module: with no sensor nothing raises and the total is zero; its ``time`` is not monotonic; a RAPL
counter that wraps can give a negative number; the first RAPL window spawns one helper process per
zone, which imports the main module again (a script needs its ``__main__`` guard) and runs until the
interpreter exits. Here a missing, negative, non-finite or unmoved counter is ``None`` with a reason,
and the helpers are started by a throwaway window before the first real one.
"""

from __future__ import annotations

import logging
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from harness.contracts import EnergyReading
from harness.errors import MeterError
from harness.metering.window import Elapsed, WindowedMeter

__all__ = ["INVALID_BELOW_PERIODS", "SHORT_BELOW_PERIODS", "ZeusMeter", "open_monitor", "quiet_zeus"]

INVALID_BELOW_PERIODS = 10
"""A window of fewer sensor periods has no energy: one tick more or less would move it by 10 % and more."""

SHORT_BELOW_PERIODS = 50
"""A window of fewer sensor periods is flagged ``short-window``: one tick moves it by more than 2 %."""

_KEY = "early-exit-harness"


def quiet_zeus() -> None:
    """Keep zeus' log records and warnings off the screen; what matters of them becomes a reason here."""
    logging.getLogger("zeus").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"zeus\.")


def open_monitor(gpu_indices: Sequence[int], cpu_indices: Sequence[int]) -> Any:
    """Return a ``zeus.monitor.ZeusMonitor`` over these GPUs and RAPL zones, never over all of them."""
    quiet_zeus()
    from zeus.monitor import ZeusMonitor

    return ZeusMonitor(
        gpu_indices=list(gpu_indices),
        cpu_indices=list(cpu_indices),
        approx_instant_energy=False,  # power at one instant × time is not a reading of the counter
    )


class ZeusMeter(WindowedMeter):
    """A meter over zeus' counters; subclasses say which counters and which of their fields.

    Args:
        device: torch device, synchronised at both edges.
        gpu_indices: GPUs to read, as torch numbers them.
        cpu_indices: RAPL zones to read, by zeus' numbering.

    Raises:
        MeterError: zeus cannot open or read them.
    """

    scope = ""
    period_s = 1.0

    def __init__(self, device: str, *, gpu_indices: Sequence[int] = (), cpu_indices: Sequence[int] = ()) -> None:
        super().__init__(device)
        with self._sensor_errors("cannot be opened"):
            self._monitor = open_monitor(gpu_indices, cpu_indices)
            self._monitor.begin_window(_KEY, sync_execution=False)
            self._first = self._monitor.end_window(_KEY, sync_execution=False)

    @property
    def sensor_period_s(self) -> float | None:
        """How often the counter ticks, seconds."""
        return self.period_s

    @abstractmethod
    def _joules(self, measurement: Any) -> Mapping[str, float | None]:
        """Return joules by counter name; ``None`` for a counter that gave nothing."""

    def _begin_sensor(self) -> None:
        with self._sensor_errors("failed when a window began"):
            # restart: a window whose end was never reached (its work raised) must not block this one
            self._monitor.begin_window(_KEY, sync_execution=False, restart=True)

    def _end_sensor(self, elapsed: Elapsed) -> EnergyReading:
        with self._sensor_errors("failed when a window ended"):
            joules = self._joules(self._monitor.end_window(_KEY, sync_execution=False))
        flags, reason = self._judge(elapsed.duration_s, joules)
        return EnergyReading(
            energy_j=sum(value for value in joules.values() if value is not None) if reason is None else None,
            source=self.source,
            scope=self.scope,
            duration_s=elapsed.duration_s,
            cpu_time_s=elapsed.cpu_time_s,
            sensor_period_s=self.period_s,
            flags=flags,
            reason=reason,
        )

    def _judge(self, duration_s: float, joules: Mapping[str, float | None]) -> tuple[tuple[str, ...], str | None]:
        """Return the flags of a window, and why it has no energy if it has none."""
        if not joules:
            return (), f"{self.source} gave no reading"
        for name, value in joules.items():
            if value is None or not math.isfinite(value):
                return (), f"the counter of {name} gave no reading"
            if value < 0:
                return ("negative-reading",), f"the counter of {name} ran backwards ({value:.3g} J): it wrapped"
        periods = duration_s / self.period_s
        if periods < INVALID_BELOW_PERIODS:
            limit_s = INVALID_BELOW_PERIODS * self.period_s
            reason = f"a window of {duration_s:.3g} s is shorter than 10 sensor periods ({limit_s:.3g} s)"
            return ("invalid-window",), reason
        if not any(joules.values()):
            return ("stuck-counter",), f"the {self.source} counter did not move in {duration_s:.3g} s"
        return (("short-window",) if periods < SHORT_BELOW_PERIODS else ()), None

    @contextmanager
    def _sensor_errors(self, what: str) -> Iterator[None]:
        from zeus.exception import ZeusBaseError

        try:
            yield
        except (ZeusBaseError, RuntimeError, ValueError, OSError) as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise MeterError(
                f"the {self.source} sensor {what}: {first_line}. "
                "Use --energy estimate for a labelled guess, or --energy none."
            ) from error
