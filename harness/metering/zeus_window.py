"""Windows of zeus' hardware counters; what they may do wrong is judged in :mod:`harness.metering.counters`.

zeus (ML.ENERGY, https://ml.energy/zeus) reads NVML and RAPL. Facts of its 0.16 that shape this
module: with no sensor nothing raises and the total is zero; its ``time`` is not monotonic; a RAPL
counter that wraps can give a negative number; the first RAPL window spawns one helper process per
zone, which imports the main module again (a script needs its ``__main__`` guard) and runs until the
interpreter exits. Here the helpers are started by a throwaway window before the first real one, and
whatever zeus raises becomes one line.
"""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from harness.errors import MeterError
from harness.metering.clock import SYSTEM_CLOCK, Clock
from harness.metering.counters import CounterMeter

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


class ZeusMeter(CounterMeter):
    """A meter over zeus' counters; subclasses say which counters and which of their fields.

    Args:
        device: torch device, synchronised at both edges.
        gpu_indices: GPUs to read, as torch numbers them.
        cpu_indices: RAPL zones to read, by zeus' numbering.
        clock: what times the windows; zeus' own is not monotonic.

    Raises:
        MeterError: zeus cannot open or read them.
    """

    measured = True

    def __init__(
        self,
        device: str,
        *,
        gpu_indices: Sequence[int] = (),
        cpu_indices: Sequence[int] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(device, clock=clock)
        with self._sensor_errors("cannot be opened"):
            self._monitor = open_monitor(gpu_indices, cpu_indices)
            self._monitor.begin_window(_KEY, sync_execution=False)
            self._first = self._monitor.end_window(_KEY, sync_execution=False)

    @abstractmethod
    def _joules(self, measurement: Any) -> Mapping[str, float | None]:
        """Return joules by counter name; ``None`` for a counter that gave nothing."""

    def _begin_sensor(self) -> None:
        with self._sensor_errors("failed when a window began"):
            # restart: a window whose end was never reached (its work raised) must not block this one
            self._monitor.begin_window(_KEY, sync_execution=False, restart=True)

    def _end_counters(self) -> Mapping[str, float | None]:
        with self._sensor_errors("failed when a window ended"):
            return self._joules(self._monitor.end_window(_KEY, sync_execution=False))

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
