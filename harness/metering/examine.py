"""Gathers the facts of this machine: what the system tells, and a few short measurements.

About three seconds, most of them the bandwidth's. The cores are watched meanwhile, so the load of other
processes is what they took while this one was busy too, as it will be in a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from harness.errors import is_out_of_memory
from harness.host import processor
from harness.metering import measure_bandwidth
from harness.metering.compute import measure_compute
from harness.metering.cpu_load import SHORTEST_LOOK_S, LoadReading, LoadWatch
from harness.metering.dispatch import measure_dispatch
from harness.metering.timer import measure_timer
from harness.records.machine import MachineRecord, SensorRecord

__all__ = ["examine"]

_Reading = TypeVar("_Reading")


def examine(
    device: str,
    dtype: str,
    *,
    meter: str,
    meter_description: str,
    meter_measured: bool,
    sensors: Sequence[SensorRecord],
    scores_missing: Sequence[str],
    environment: Mapping[str, Any],
    stage: Callable[[str], None] = lambda text: None,
) -> MachineRecord:
    """Measure what decides how far numbers of this machine can be trusted.

    Args:
        device: torch device on which the measured work runs.
        dtype: torch dtype name of the weights.
        meter: source of the energy meter in use.
        meter_description: the meter in its own words.
        meter_measured: it reads a sensor.
        sensors: energy sensors that were looked for.
        scores_missing: sentences about scores that cannot be computed here.
        environment: as :func:`harness.host.environment.describe` returns it.
        stage: is told what is being measured.
    """
    import torch

    missing: dict[str, str] = {}
    watch, started = LoadWatch(), time.perf_counter()
    stage("memory bandwidth")
    bandwidth = _unless_memory_runs_out("bandwidth", missing, lambda: measure_bandwidth(dtype, device))
    stage("matrix products")
    compute = _unless_memory_runs_out("gemm", missing, lambda: measure_compute(dtype, device))
    stage("dispatch, clocks and load")
    dispatch, timer, clock = measure_dispatch(device), measure_timer(), processor.clock()
    time.sleep(max(0.0, SHORTEST_LOOK_S - (time.perf_counter() - started)))
    load = watch.read()
    if isinstance(load, str):
        missing["foreign_cpu_s"] = load
    cores = processor.usable_cores()
    return MachineRecord(
        device=device,
        dtype=dtype,
        logical_cores=environment.get("logical_cores"),
        usable_cores=None if cores is None else len(cores),
        quota_cores=processor.quota_cores(),
        threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        hypervisor=processor.hypervisor(),
        clock_mhz=None if clock is None else clock.mhz,
        clock_source=None if clock is None else clock.source,
        governors=processor.governors(),
        **_load_facts(load),
        timer=timer.name,
        timer_resolution_s=timer.resolution_s,
        timer_backward_steps=timer.backward_steps,
        bandwidth_bytes_per_s=None if bandwidth is None else bandwidth.bytes_per_s,
        bandwidth_kernel=None if bandwidth is None else bandwidth.kernel,
        bandwidth_buffer_bytes=None if bandwidth is None else bandwidth.buffer_bytes,
        bandwidth_cache_bytes=None if bandwidth is None else bandwidth.cache_bytes,
        bandwidth_limited_by=None if bandwidth is None else bandwidth.limited_by,
        gemm_flops_per_s=None if compute is None else compute.flops_per_s,
        gemm_size=None if compute is None else compute.size,
        dispatch_s=dispatch.seconds,
        meter=meter,
        meter_description=meter_description,
        meter_measured=meter_measured,
        sensors=tuple(sensors),
        scores_missing=tuple(scores_missing),
        missing=missing,
    )


def _load_facts(load: LoadReading | str) -> dict[str, Any]:
    if isinstance(load, str):
        return {}
    return {
        "load_span_s": load.span_s,
        "load_cores": load.cores,
        "own_cpu_s": load.own_cpu_s,
        "foreign_cpu_s": load.foreign_cpu_s,
        "stolen_cpu_s": load.stolen_cpu_s,
    }


def _unless_memory_runs_out(what: str, missing: dict[str, str], measure: Callable[[], _Reading]) -> _Reading | None:
    try:
        return measure()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        missing[what] = "no memory left for the measurement"
        return None
