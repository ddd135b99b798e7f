"""Gathers the facts of this machine: what the system tells, and a few short measurements.

About three seconds, most of them the bandwidth's. The cores are watched meanwhile, so the load of other
processes is what they took while this one was busy too, as it will be in a run.

Peak arithmetic of the device: matrix × matrix, as prefill and training use it.

Beside the bandwidth it is the machine's second limit: prefill multiplies a whole prompt at once and is
bound by this one. The best of a few passes counts, because a peak is what the device can do when nothing
disturbs it.

Not promised: the vendor's figure. It is reached with larger matrices and fused kernels only.

The dispatch floor: what one torch operation costs when it has nothing to compute.

A decode step of a small model is hundreds of operations on one token; no speed predicted from bytes or FLOPs
can be reached where this floor times their number is the larger part of the step.

The clock behind every latency: how fine it is, and whether it ever runs backwards.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from harness.errors import is_out_of_memory
from harness.host import processor
from harness.metering import measure_bandwidth
from harness.metering.cpu_load import SHORTEST_LOOK_S, LoadReading, LoadWatch
from harness.metering.window import synchronise
from harness.records.machine import MachineRecord, SensorRecord

SMALLEST, LARGEST = 256, 8192
LONG_ENOUGH_S = 0.01
"""A pass so long drowns the dispatch; the matrices grow until it takes that long."""

BUDGET_S = 0.4
COMPUTE_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class ComputeReading:
    """How fast the device multiplies matrices.

    Attributes:
        flops_per_s: multiplications and additions per second, best pass of the largest size tried.
        size: rows and columns of the square matrices.
        dtype: torch dtype name. On a GPU torch's present setting for TF32 applies.
        threads: CPU threads; torch's number on a GPU too, where it does not matter.
    """

    flops_per_s: float
    size: int
    dtype: str
    threads: int


def measure_compute(dtype: str, device: str, *, budget_s: float = BUDGET_S) -> ComputeReading:
    """Measure how many floating-point operations per second a matrix product does, in about half a second.

    Args:
        dtype: torch dtype name.
        device: torch device.
        budget_s: no larger matrix and no further pass is tried after so long.
    """
    import torch

    deadline = time.perf_counter() + budget_s
    size = SMALLEST
    with torch.inference_mode():
        while True:
            left = torch.full((size, size), 0.01, dtype=getattr(torch, dtype), device=device)
            right, product = left.clone(), torch.empty_like(left)
            _pass(left, right, product, device)  # warm-up: pages, thread pool, kernel choice
            best = _pass(left, right, product, device)
            # a pass of twice the size takes eight times as long, twice with its warm-up
            room = time.perf_counter() + 16 * best < deadline
            if best >= LONG_ENOUGH_S or size >= LARGEST or not room:
                break
            size *= 2
        for _ in range(COMPUTE_ROUNDS):
            if time.perf_counter() > deadline:
                break
            best = min(best, _pass(left, right, product, device))
    return ComputeReading(2 * size**3 / best, size, dtype, torch.get_num_threads())


def _pass(left: object, right: object, product: object, device: str) -> float:
    import torch

    synchronise(device)
    started = time.perf_counter()
    torch.mm(left, right, out=product)  # type: ignore[call-overload]
    synchronise(device)
    return time.perf_counter() - started


OPERATIONS = 500
DISPATCH_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class DispatchReading:
    """Cost of an operation without work.

    Attributes:
        seconds: per operation, called from Python; the median round. On a GPU operations are queued back to back,
            so it is the longer of issuing and launching one.
        operations: operations of one round.
        rounds: how many rounds.
    """

    seconds: float
    operations: int
    rounds: int


def measure_dispatch(device: str, *, operations: int = OPERATIONS, rounds: int = DISPATCH_ROUNDS) -> DispatchReading:
    """Measure the seconds of adding two numbers with torch, in about 50 ms.

    Args:
        device: torch device.
        operations: operations of one round.
        rounds: rounds; the median counts.
    """
    import torch

    seconds = []
    with torch.inference_mode():
        number = torch.ones(1, device=device)
        for _ in range(rounds + 1):  # the first one is the warm-up
            synchronise(device)
            started = time.perf_counter()
            for _ in range(operations):
                torch.add(number, number)
            synchronise(device)
            seconds.append((time.perf_counter() - started) / operations)
    return DispatchReading(statistics.median(seconds[1:]), operations, rounds)


READS = 20_000


@dataclass(frozen=True, slots=True)
class TimerReading:
    """How ``time.perf_counter`` behaves here.

    Attributes:
        name: the system's clock behind it, for example ``clock_gettime(CLOCK_MONOTONIC)``.
        resolution_s: smallest step seen between two readings, what it takes to read it included; ``None`` if it
            never moved.
        backward_steps: readings that were earlier than the one before; must be 0.
    """

    name: str
    resolution_s: float | None
    backward_steps: int


def measure_timer(read: Callable[[], float] = time.perf_counter, reads: int = READS) -> TimerReading:
    """Read the clock in a row, some milliseconds long.

    Args:
        read: the clock, seconds.
        reads: how often.
    """
    values = [read() for _ in range(reads)]
    steps = [later - earlier for earlier, later in pairwise(values)]
    forward = [step for step in steps if step > 0]
    name = time.get_clock_info("perf_counter").implementation
    return TimerReading(name, min(forward, default=None), sum(step < 0 for step in steps))


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
