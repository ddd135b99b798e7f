"""Which energy sensors serve a device, why the others do not, and how often they tick."""

from __future__ import annotations

from collections.abc import Mapping

from harness.contracts import Meter
from harness.metering.nvml import Nvml
from harness.metering.rapl import Rapl
from harness.metering.soc import probe_soc
from harness.metering.ticks import measure_period
from harness.records.machine import SensorRecord

__all__ = ["look_for_sensors", "sensors_of_meter"]


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
