"""Which energy sensors serve a device, why the others do not, and how often they tick.

The period of an energy counter, found by polling it.

Documentation says about 100 ms for NVML and about 1 ms for RAPL, which is what windows are sized by; drivers and
firmware differ, so the period is measured where there is a counter, and a verdict says when the two do not fit.

Is there an energy counter of the whole chip (Apple Silicon, NVIDIA Jetson)?

zeus reads both; this module only finds out. No meter of the harness uses the answer yet, because none of
them could be checked on such a machine.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from harness.contracts import Meter
from harness.metering import rapl
from harness.metering.nvml import Nvml, gpu_index
from harness.metering.rapl import Rapl
from harness.metering.zeus_window import quiet_zeus
from harness.records.machine import SensorRecord

TICKS = 12
TIMEOUT_S = 1.5
FEWEST_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class TickReading:
    """How often a counter moves.

    Attributes:
        period_s: median time between two changes; ``None`` with a ``reason``.
        intervals: whole intervals seen.
        read_s: what one reading takes, on average: the period cannot be resolved below it. ``None`` without one.
        reason: why there is no period.
    """

    period_s: float | None
    intervals: int
    read_s: float | None
    reason: str | None = None


def measure_ticks(
    read: Callable[[], object],
    *,
    ticks: int = TICKS,
    timeout_s: float = TIMEOUT_S,
    now: Callable[[], float] = time.perf_counter,
) -> TickReading:
    """Poll a counter until it moved some times or time is up.

    The first interval is cut off by the beginning and does not count.

    Args:
        read: the counter, as anything that compares.
        ticks: whole intervals wanted.
        timeout_s: when to stop.
        now: the clock, seconds.
    """
    started = now()
    changes: list[float] = []
    last, reads, moment = read(), 1, started
    while len(changes) <= ticks and moment - started < timeout_s:
        value, moment = read(), now()
        reads += 1
        if value != last:
            changes.append(moment)
            last = value
    intervals = [later - earlier for earlier, later in pairwise(changes)]
    read_s = (moment - started) / reads
    if len(intervals) < FEWEST_INTERVALS:
        reason = f"the counter moved {len(changes)} times in {moment - started:.2g} s, too few to tell its period"
        return TickReading(None, len(intervals), read_s, reason)
    return TickReading(statistics.median(intervals), len(intervals), read_s)


def measure_period(source: str, device: str) -> TickReading:
    """Poll the counter of an available sensor; a counter that fails or is not there gives a reason, no period.

    Arguments as :func:`open_counter`.
    """
    from zeus.exception import ZeusBaseError

    try:
        counter = open_counter(source, device)
        if counter is None:
            return TickReading(None, 0, None, "its counter cannot be polled from here")
        return measure_ticks(counter)
    except (ZeusBaseError, RuntimeError, ValueError, OSError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        return TickReading(None, 0, None, f"its counter failed while it was polled: {first_line}")


def open_counter(source: str, device: str) -> Callable[[], object] | None:
    """Return a function that reads the raw counter behind an available sensor; ``None`` for one that cannot be polled.

    Args:
        source: ``nvml`` (millijoules), ``rapl`` (microjoules of the first package), or anything else, which has no
            counter that is known here.
        device: torch device, which says what GPU.
    """
    if source == "nvml":
        from zeus.device.gpu import get_gpus

        gpus, index = get_gpus(), gpu_index(device)
        return lambda: gpus.get_total_energy_consumption(index)
    if source == "rapl":
        counter = _package_counter()
        return None if counter is None else counter.read_bytes
    return None


def _package_counter() -> Path | None:
    """The first package's counter file; ``None`` where only zeus' daemon may read it."""
    for root in rapl.POWERCAP:
        for zone in sorted(root.glob("intel-rapl:*")):
            name, counter = zone / "name", zone / "energy_uj"
            if os.access(counter, os.R_OK) and name.read_text(encoding="utf-8").startswith("package"):
                return counter
    return None


def probe_soc() -> str | None:
    """Return why zeus cannot read a chip's counter here and how to enable it; ``None`` if it can."""
    if sys.platform not in ("darwin", "linux"):
        return f"chips have a counter that is readable on macOS and Linux, and this is {platform.system()}"
    quiet_zeus()
    from zeus.device.soc import get_soc
    from zeus.exception import ZeusBaseError

    try:
        get_soc()
    except (ZeusBaseError, OSError) as error:
        if sys.platform == "darwin" and platform.machine() == "arm64":
            return "zeus has no access to Apple Silicon's counters (run `pip install zeus-apple-silicon`)"
        if "observable" in str(error):
            return "the chip is neither Apple Silicon nor a Jetson"
        return f"zeus cannot read the chip's counters: {(str(error) or type(error).__name__).splitlines()[0]}"
    return None


def look_for_sensors(device: str) -> tuple[SensorRecord, ...]:
    """Probe every kind of sensor and poll those that are there; two seconds at most.

    Args:
        device: torch device on which the measured work runs.
    """
    on_gpu = device.startswith("cuda")
    # a probe for a device that its sensor does not serve would not say whether the sensor is there at all
    nvml = Nvml.probe(device if on_gpu else "cuda")
    rapl = Rapl.probe("cpu")
    return (
        _sensor(
            Nvml.source,
            nvml or (None if on_gpu else "it counts a GPU and the work runs on the CPU (--device cuda)"),
            device,
            Nvml.period_s,
        ),
        _sensor(
            Rapl.source,
            rapl or ("it counts the CPU and the work runs on a GPU" if on_gpu else None),
            device,
            Rapl.period_s,
        ),
        _sensor("soc", probe_soc() or "zeus reads this chip, but no meter of the harness does yet", device),
    )


def sensors_of_meter(meter: Meter, unavailable: Mapping[str, str], device: str) -> tuple[SensorRecord, ...]:
    """Return what a run knows already: the meter in use, polled, and why better ones are not there.

    Args:
        meter: open.
        unavailable: meter → reason, see :func:`harness.metering.open_meter`.
        device: torch device.
    """
    missing = tuple(SensorRecord(name=name, unavailable=reason) for name, reason in unavailable.items())
    if meter.sensor_period_s is None:  # an estimate, or nothing
        return missing
    return (_sensor(meter.source, None, device, meter.sensor_period_s), *missing)


def _sensor(name: str, unavailable: str | None, device: str, stated_period_s: float | None = None) -> SensorRecord:
    if unavailable is not None:
        return SensorRecord(name=name, unavailable=unavailable)
    ticks = measure_period(name, device)
    return SensorRecord(
        name=name,
        stated_period_s=stated_period_s,
        period_s=ticks.period_s,
        period_reason=ticks.reason,
    )
