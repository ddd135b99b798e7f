"""Energy sensors through zeus: NVML's counters of NVIDIA GPUs, RAPL's of CPU packages; which are here, and their ticks.

Facts of zeus 0.16 that shape this module: with no sensor nothing raises and the total is zero; a RAPL counter that
wraps can give a negative number; the first RAPL window spawns a helper process per zone, which imports the main module
again and runs until the interpreter exits: a throwaway window starts them. What counters may do wrong is judged in
:mod:`harness.metering.counters`. Drivers differ from the documentation of ticks, so the period is measured by polling.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.contracts import Meter
from harness.errors import MeterError
from harness.metering.clock import SYSTEM_CLOCK, Clock
from harness.metering.counters import CounterMeter
from harness.records.machine import SensorRecord

NVML_PERIOD_S = 0.1
"""``nvmlDeviceGetTotalEnergyConsumption`` ticks about every 100 ms on Volta and later."""

RAPL_PERIOD_S = 0.001
"""RAPL counters are updated about every millisecond (Intel SDM vol. 3B, "RAPL Interfaces")."""

POWERCAP = (Path("/sys/class/powercap/intel-rapl"), Path("/zeus_sys/class/powercap/intel-rapl"))
"""Where zeus looks for RAPL, in its order; the second is its mount point inside a container."""

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


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


class ZeusMeter(CounterMeter):
    """A meter over zeus' counters; subclasses say which counters and which of their fields."""

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
            raise self._failure(what, _first_line(error)) from error


class Nvml(ZeusMeter):
    """NVIDIA GPU board, by NVML's energy counter (Volta and later).

    Host CPU and memory are not counted; on a Grace Hopper the counter covers the whole module. The GPU is the one that
    torch calls by the same number: where a machine mixes GPU types, set ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.

    Args:
        device: ``cuda`` or ``cuda:N``; several joined by commas, whose energy is summed.
    """

    source = "nvml"
    scope = "gpu board"
    period_s = NVML_PERIOD_S

    def __init__(self, *, device: str, tdp_w: float | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._indices = [gpu_index(one) for one in device.split(",")]
        super().__init__(device, gpu_indices=self._indices, clock=clock)

    @classmethod
    def probe(cls, device: str) -> str | None:
        """Return why the counter of this device cannot be read and how to enable it; ``None`` if it can."""
        devices = device.split(",")
        if not all(one.startswith("cuda") for one in devices):
            if len(devices) > 1:
                return f"NVML reads NVIDIA GPUs, and of {device} not all are (use --energy none or other layers)"
            return f"NVML reads NVIDIA GPUs and the device is '{device}' (use --device cuda)"
        quiet_zeus()
        try:
            from zeus.device.gpu.nvidia import nvml_is_available

            available = nvml_is_available()
        except ImportError as error:
            return f"NVML's Python bindings cannot be imported ({error}; run `pip install nvidia-ml-py`)"
        if not available:
            return "no NVIDIA driver answers (install it; in a container, start that with the GPU passed through)"
        return next((reason for one in devices if (reason := _counter_missing(gpu_index(one)))), None)

    @property
    def description(self) -> str:
        """One line: counter, scope, tick."""
        numbers = ", ".join(map(str, self._indices))
        of = f"counter of GPU {numbers}" if len(self._indices) == 1 else f"counters of GPUs {numbers}, summed"
        return f"NVML energy {of}: {self.scope} without the host, ticks about every {self.period_s * 1000:g} ms"

    def _joules(self, measurement: Any) -> Mapping[str, float | None]:
        return {f"GPU {index}": measurement.gpu_energy.get(index) for index in self._indices}


def gpu_index(device: str) -> int:
    """Return N of ``cuda:N``, and 0 for ``cuda``."""
    _, _, number = device.partition(":")
    return int(number) if number else 0


def _counter_missing(index: int) -> str | None:
    from zeus.device.gpu import get_gpus
    from zeus.exception import ZeusBaseError

    try:
        gpus = get_gpus()
        if index >= len(gpus):
            return f"NVML shows {len(gpus)} GPUs and the device is number {index} (check CUDA_VISIBLE_DEVICES)"
        if not gpus.supports_get_total_energy_consumption(index):
            return f"GPU {index} has no energy counter (it needs Volta or later, and no virtual or MIG slice)"
    except (ZeusBaseError, ValueError) as error:  # ValueError: CUDA_VISIBLE_DEVICES holds no integers
        return f"NVML cannot be used: {_first_line(error)}"
    return None


class Rapl(ZeusMeter):
    """CPU packages and their memory, by the RAPL counters (Linux, Intel and AMD).

    Whole packages: whatever else runs on them is counted too. The DRAM counter is added where the package has one and
    the scope says so; the ``psys`` zone, in which the packages are, is left out.
    """

    source = "rapl"
    period_s = RAPL_PERIOD_S

    def __init__(self, *, device: str, tdp_w: float | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        zones = package_zones()
        if not zones:
            raise MeterError(f"the rapl sensor cannot be opened: {self.probe(device)}. Use --energy estimate or none.")
        super().__init__(device, cpu_indices=list(zones), clock=clock)
        self._names = {index: _name(zone) for index, zone in zones.items()}
        self._with_dram = [index for index in zones if index in (self._first.dram_energy or {})]
        self._ranges_j = _ranges_j(zones.values())
        self.scope = "cpu package + dram" if self._with_dram else "cpu package"

    @classmethod
    def probe(cls, device: str) -> str | None:
        """Return why the counters cannot be read and how to enable them; ``None`` if they can."""
        if not all(one.startswith("cpu") for one in device.split(",")):
            return f"RAPL counts CPU packages and the work runs on '{device}' (use --energy nvml)"
        root = _root()
        if root is None:
            return (
                f"{POWERCAP[0]} is absent: a virtual machine hides the host's counters, or the kernel module is not "
                "loaded (on bare metal run `sudo modprobe intel_rapl_msr`)"
            )
        if not package_zones():
            return f"{root} has no package zone (on bare metal run `sudo modprobe intel_rapl_msr`)"
        if "ZEUSD_SOCK_PATH" in os.environ or "ZEUSD_HOST_PORT" in os.environ:
            return None  # zeus asks its daemon, which reads the counters as root
        # zeus opens every zone, those that are left out here as well
        counters = [*root.glob("intel-rapl:*/energy_uj"), *root.glob("intel-rapl:*/intel-rapl:*/energy_uj")]
        if not all(os.access(counter, os.R_OK) for counter in counters):
            return f"the counters are readable by root only (run `sudo chmod -R a+r {root}`, or run as root)"
        return None

    @property
    def description(self) -> str:
        """One line: zones, scope, tick."""
        return (
            f"RAPL counters of {', '.join(self._names.values())}: {self.scope}, everything that runs there, "
            f"ticks about every {self.period_s * 1000:g} ms"
        )

    def _joules(self, measurement: Any) -> Mapping[str, float | None]:
        package, dram = measurement.cpu_energy or {}, measurement.dram_energy or {}
        joules = {name: package.get(index) for index, name in self._names.items()}
        return joules | {f"{self._names[index]} dram": dram.get(index) for index in self._with_dram}


def _root() -> Path | None:
    return next((root for root in POWERCAP if root.exists()), None)


def _name(zone: Path) -> str:
    return (zone / "name").read_text(encoding="utf-8").strip()


def package_zones() -> dict[int, Path]:
    """Return the package zones of this machine by zeus' number, a zone's place among all; empty without RAPL."""
    root = _root()
    numbered = [path for path in root.glob("intel-rapl:*") if path.name.partition(":")[2].isdigit()] if root else []
    numbered.sort(key=lambda path: int(path.name.partition(":")[2]))
    return {index: path for index, path in enumerate(numbered) if _name(path).startswith("package")}


def _ranges_j(zones: Iterable[Path]) -> dict[str, float]:
    """Return how far each counter counts before it starts again at zero, where the kernel says so.

    zeus adds wraps from a helper process; when that comes late, the difference is negative by exactly this much.
    """
    ranges: dict[str, float] = {}
    for zone in zones:
        for folder in (zone, *(part for part in zone.glob(f"{zone.name}:*") if _name(part) == "dram")):
            name = _name(zone) if folder is zone else f"{_name(zone)} dram"
            with suppress(OSError, ValueError):
                ranges[name] = int((folder / "max_energy_range_uj").read_text(encoding="utf-8")) / 1e6
    return ranges


TICKS = 12
TIMEOUT_S = 1.5
FEWEST_INTERVALS = 3


def measure_ticks(
    read: Callable[[], object],
    *,
    ticks: int = TICKS,
    timeout_s: float = TIMEOUT_S,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[float | None, str | None]:
    """Poll a counter; return the median seconds between two changes, or ``None`` and why there are too few."""
    started = moment = now()
    changes: list[float] = []
    last = read()
    while len(changes) <= ticks and moment - started < timeout_s:
        value, moment = read(), now()
        if value != last:
            changes.append(moment)
            last = value
    intervals = [later - earlier for earlier, later in pairwise(changes)]  # the beginning cut off the one before
    if len(intervals) < FEWEST_INTERVALS:
        moved = f"the counter moved {len(changes)} times in {moment - started:.2g} s"
        return None, f"{moved}, too few to tell its period"
    return statistics.median(intervals), None


def measure_period(source: str, device: str) -> tuple[float | None, str | None]:
    """Poll the counter of an available sensor, as :func:`measure_ticks`; one that fails is a reason as well."""
    from zeus.exception import ZeusBaseError

    try:
        if source == "nvml":
            from zeus.device.gpu import get_gpus

            gpus, index = get_gpus(), gpu_index(device)
            return measure_ticks(lambda: gpus.get_total_energy_consumption(index))
        counters = [zone / "energy_uj" for zone in package_zones().values()] if source == "rapl" else []
        for counter in counters:
            if os.access(counter, os.R_OK):  # none may be where zeus' daemon reads them as root
                return measure_ticks(counter.read_bytes)
    except (ZeusBaseError, RuntimeError, ValueError, OSError) as error:
        return None, f"its counter failed while it was polled: {_first_line(error)}"
    return None, "its counter cannot be polled from here"


def look_for_sensors(device: str) -> tuple[SensorRecord, ...]:
    """Probe every kind of sensor and poll those that are there; two seconds at most."""
    on_gpu = device.startswith("cuda")
    # a probe for a device that its sensor does not serve would not say whether the sensor is there at all
    nvml = Nvml.probe(device if on_gpu else "cuda")
    rapl = Rapl.probe("cpu")
    if not on_gpu:
        nvml = nvml or "it counts a GPU and the work runs on the CPU (--device cuda)"
    else:
        rapl = rapl or "it counts the CPU and the work runs on a GPU"
    return _sensor(Nvml.source, nvml, device, NVML_PERIOD_S), _sensor(Rapl.source, rapl, device, RAPL_PERIOD_S)


def sensors_of_meter(meter: Meter, unavailable: Mapping[str, str], device: str) -> tuple[SensorRecord, ...]:
    """Return what a run knows already: the meter in use, polled, and why better ones are not there."""
    missing = tuple(SensorRecord(name=name, unavailable=reason) for name, reason in unavailable.items())
    if meter.sensor_period_s is None:  # an estimate, or nothing
        return missing
    return (_sensor(meter.source, None, device, meter.sensor_period_s), *missing)


def _sensor(name: str, unavailable: str | None, device: str, stated_period_s: float) -> SensorRecord:
    if unavailable is not None:
        return SensorRecord(name=name, unavailable=unavailable)
    period_s, reason = measure_period(name, device)
    return SensorRecord(name=name, stated_period_s=stated_period_s, period_s=period_s, period_reason=reason)
