"""Other activity of the machine while something is measured: other processes, the hypervisor, heat, clocks.

Counters of the kernel and of a GPU's driver are read just outside the meter's edges. What cannot be read is ``None``
and flags nothing. Only cores this process may run on are looked at; child processes count as foreign in a window.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from harness.contracts import EnergyReading, Meter
from harness.host.processor import core_count, usable_cores
from harness.metering.clock import SYSTEM_CLOCK, Clock
from harness.metering.counters import SHORT_BELOW_PERIODS
from harness.metering.window import metered

SHORTEST_LOOK_S = 1.0
"""The kernel counts in ticks of 10 ms: of a shorter look, one tick would be more than 1 %."""


def core_times() -> tuple[float, float, float] | None:
    """Return CPU seconds since boot of the cores this process may use: busy, stolen, idle.

    ``None`` where the system does not show all of these cores, or nothing stolen.
    """
    try:
        shown = psutil.cpu_times(percpu=True)
        times = [shown[core] for core in usable_cores() or ()]
        stolen = sum(core.steal for core in times)
    except (OSError, RuntimeError, ValueError, LookupError, AttributeError):
        return None
    busy = sum(core.user + core.nice + core.system + core.irq + core.softirq for core in times)
    return (busy, stolen, sum(core.idle + core.iowait for core in times)) if times else None


@dataclass(frozen=True, slots=True)
class LoadReading:
    """CPU time over a span; ``own_cpu_s`` includes child processes that have ended."""

    span_s: float
    cores: int
    own_cpu_s: float
    foreign_cpu_s: float
    stolen_cpu_s: float

    @property
    def foreign_share(self) -> float:
        """Share of the cores' time that others used, 0…1."""
        return self.foreign_cpu_s / (self.span_s * self.cores)

    @property
    def stolen_share(self) -> float:
        """Share of the cores' time that the hypervisor gave away, 0…1."""
        return self.stolen_cpu_s / (self.span_s * self.cores)


class LoadWatch:
    """Watches the usable cores from its creation on."""

    def __init__(self) -> None:
        self._times, self._own_s, self._started = core_times(), sum(os.times()[:4]), time.perf_counter()

    def read(self) -> LoadReading | str:
        """Return the load since the watch began, or why it cannot be had. May be asked again."""
        times, own_s, span_s = core_times(), sum(os.times()[:4]) - self._own_s, time.perf_counter() - self._started
        if self._times is None or times is None:
            return "this system hides what other processes do on the cores"
        busy_s, stolen_s, idle_s = (now - before for now, before in zip(times, self._times, strict=True))
        if busy_s + stolen_s + idle_s <= 0:
            return f"the cores' counters did not move in {span_s:.2g} s: this system hides what other processes do"
        return LoadReading(span_s, core_count(), own_s, max(0.0, busy_s - own_s), max(0.0, stolen_s))


def threads_left(foreign_share: float, cores: int) -> int:
    """Return how many threads still have a core of their own beside what others take, at least one.

    Threads wait for each other many times in every layer, so one that has to share its core holds up all.
    """
    return max(1, round(cores * (1 - foreign_share)))


THERMAL_REASONS = 0x08 | 0x20 | 0x40 | 0x80
"""HwSlowdown, SwThermalSlowdown, HwThermalSlowdown and HwPowerBrakeSlowdown of ``nvmlClocksEventReasons``.

SwPowerCap (0x04) is not among them: a busy board runs at its power limit all the time.
"""


def gpu_clock_reasons(device: str) -> Callable[[], int | None] | None:
    """Return what asks NVML why a GPU runs at the clock it has (a bit mask); ``None`` where nothing can answer."""
    if not device.startswith("cuda"):
        return None
    try:
        import pynvml
    except ImportError:
        return None
    import torch

    try:
        pynvml.nvmlInit()
        # torch's number and NVML's differ under CUDA_VISIBLE_DEVICES; the UUID is the same
        uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except (pynvml.NVMLError, AttributeError):  # a torch that does not say the UUID
        return None

    def reasons() -> int | None:
        try:
            return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        except pynvml.NVMLError:
            return None

    return reasons


CONTAMINATED = frozenset({"foreign-cpu", "stolen-cpu", "throttled", "clock-change"})
"""Flags of windows that ``--strict`` measures again."""

FOREIGN_SHARE = 0.05
"""``foreign-cpu``: everything else took more than this share of the window's core-seconds (usable cores × length)."""

STOLEN_SHARE = 0.01
"""``stolen-cpu``: the hypervisor gave more than this share of the window's core-seconds to other machines."""

CLOCK_CHANGE = 0.10
"""``clock-change``: the fastest core's clock differs by more than this between the edges."""

RESOLUTION_TICKS = 2
"""Kernel ticks by which a core's counters, and those of this process, may be apart at two edges."""

WATCHED_CORES = 16
"""Cores whose clock and throttle counters are read, so that an edge stays cheap on a large machine."""

CPU_ROOT = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Glance:
    """The counters at one edge."""

    monotonic_s: float
    own_s: float
    busy_s: float | None = None
    stolen_s: float | None = None
    throttle_counts: Mapping[str, int] | None = None
    clock_hz: float | None = None
    gpu_reasons: int | None = None


@dataclass(frozen=True, slots=True)
class Contamination:
    """Other activity between two edges."""

    foreign_cpu_s: float | None
    stolen_cpu_s: float | None
    flags: tuple[str, ...] = ()


@dataclass(slots=True)
class ObservedWindow:
    """The value that :func:`observed` yields; both ``None`` while the window is open, and after work that raised."""

    reading: EnergyReading | None = None
    contamination: Contamination | None = None


class Surroundings:
    """Reads what the machine does besides; an edge takes some tens of microseconds."""

    def __init__(self, gpu_reasons: Callable[[], int | None] | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock, self._gpu_reasons = clock, gpu_reasons
        self._cores = core_count()
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
        cores = [CPU_ROOT / f"cpu{number}" for number in (usable_cores() or ())[:WATCHED_CORES]]
        self._throttle = [str(path) for core in cores for path in core.glob("thermal_throttle/*_throttle_count")]
        self._clocks = [str(path) for core in cores if (path := core / "cpufreq" / "scaling_cur_freq").exists()]

    @classmethod
    def of(cls, device: str) -> Self:
        """Return the surroundings of work on a torch device."""
        return cls(gpu_clock_reasons(device))

    def glance(self) -> Glance:
        """Read every counter once."""
        busy_s, stolen_s, _ = core_times() or (None, None, None)
        own_s, now_s = self._clock.process_cpu_s(), self._clock.monotonic_s()
        throttle = {path: count for path in self._throttle if (count := _integer(path)) is not None}
        clocks = [khz for path in self._clocks if (khz := _integer(path)) is not None]
        return Glance(
            monotonic_s=now_s,
            own_s=own_s,
            busy_s=busy_s,
            stolen_s=stolen_s,
            throttle_counts=throttle,
            clock_hz=max(clocks) * 1e3 if clocks else None,
            gpu_reasons=self._gpu_reasons() if self._gpu_reasons is not None else None,
        )

    def compare(self, before: Glance, after: Glance) -> Contamination:
        """Return what happened between two edges."""
        core_s = self._cores * max(0.0, after.monotonic_s - before.monotonic_s)
        slack_s = RESOLUTION_TICKS * self._tick_s
        busy, own = _growth(before.busy_s, after.busy_s), after.own_s - before.own_s
        foreign = None if busy is None else max(0.0, busy - own)  # within the ticks, less than nothing is nothing
        if busy is not None and busy + self._cores * slack_s < own:
            foreign = None  # a sandbox whose counters leave this process out, or do not count at all
        stolen = _growth(before.stolen_s, after.stolen_s)
        old_hz, new_hz = before.clock_hz or 0.0, after.clock_hz or 0.0
        flags = {
            "foreign-cpu": foreign is not None and foreign > max(FOREIGN_SHARE * core_s, self._cores * slack_s),
            "stolen-cpu": stolen is not None and stolen > max(STOLEN_SHARE * core_s, slack_s),
            "throttled": _throttled(before, after),
            "clock-change": min(old_hz, new_hz) > 0 and abs(new_hz - old_hz) > CLOCK_CHANGE * old_hz,
        }
        return Contamination(foreign, stolen, tuple(name for name, applies in flags.items() if applies))


@contextmanager
def observed(meter: Meter, surroundings: Surroundings) -> Iterator[ObservedWindow]:
    """Run the body in one window of ``meter``, with a look at the machine before and after it."""
    window = ObservedWindow()
    before = surroundings.glance()
    with metered(meter) as inner:
        yield window
    window.contamination = surroundings.compare(before, surroundings.glance())
    window.reading = inner.reading


def _growth(before: float | None, after: float | None) -> float | None:
    return after - before if before is not None and after is not None and after >= before else None


def _throttled(before: Glance, after: Glance) -> bool:
    if ((before.gpu_reasons or 0) | (after.gpu_reasons or 0)) & THERMAL_REASONS:
        return True
    old, new = before.throttle_counts or {}, after.throttle_counts or {}
    return any(new[path] > old[path] for path in new if path in old)


def _integer(path: str) -> int | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


IDLE_S = 2.0
"""Shortest idle window with a sensor unless given, seconds."""

QUIET_S = 0.5
"""Wait before the left edge: worker threads of the work before may spin on for a while (0.2 s is usual)."""


def default_idle_s(period_s: float | None) -> float:
    """Return how long an idle window lasts unless given: 0, which is none, without a sensor."""
    return 0.0 if period_s is None else max(IDLE_S, SHORT_BELOW_PERIODS * period_s)


def rest(
    meter: Meter, surroundings: Surroundings, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> ObservedWindow:
    """Return a window of so many seconds in which this process does nothing."""
    sleep(QUIET_S)
    with observed(meter, surroundings) as window:
        sleep(seconds)
    return window
