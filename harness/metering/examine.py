"""The facts of this machine: what the system tells, and a few short measurements, in about three seconds.

Bandwidth is measured with the kernel that decodes, matrix × vector over weights that are not in a cache, because that
is what limits a token. The cores are watched meanwhile, so the load of others is what they took while this was busy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from harness.errors import is_out_of_memory
from harness.host import processor
from harness.metering.contamination import SHORTEST_LOOK_S, LoadWatch
from harness.metering.window import synchronise
from harness.records.machine import MachineRecord, SensorRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CACHE_MULTIPLE = 4
"""Buffer ÷ last-level cache: at most a quarter of a pass can still be cached from the one before."""

ASSUMED_CACHE_BYTES = 64 << 20
"""Where the cache size cannot be read (macOS, Windows), and the least that is assumed."""

MIN_CUDA_BUFFER_BYTES = 1 << 30
"""A GPU streams four times its L2 in less than the launches take; so much drowns them."""

MEMORY_SHARE = 0.25
"""Of the available memory, at most: weights have to fit beside the buffer."""

COLUMNS = 2048
BLOCK_BYTES = 64 << 20
"""One matrix: larger than any layer's, so that dispatch is below 1 %."""

FILL_BUDGET_S = 1.0
TOTAL_BUDGET_S = 1.8
MAX_ROUNDS = 5

SYSFS_CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class BandwidthReading:
    """How fast weights stream through matrix × vector."""

    bytes_per_s: float
    buffer_bytes: int
    kernel: str
    cache_bytes: int | None
    limited_by: Literal["memory", "time"] | None


def measure_bandwidth(dtype: str, device: str, *, buffer_bytes: int | None = None) -> BandwidthReading:
    """Measure how many weight bytes per second matrix × vector reads, in about two seconds at most.

    Three kernels are tried and the fastest counts: ``torch.nn.functional.linear``, which models call, ``torch.mv``, and
    ``torch.mm`` with the row doubled; on a CPU either of the latter may be twice as fast. A share of a slower one would
    flatter an engine that uses the others.
    """
    import torch

    deadline = time.perf_counter() + TOTAL_BUDGET_S
    if device.startswith("cuda"):
        cache = int(torch.cuda.get_device_properties(device).L2_cache_size) or None
        available = torch.cuda.mem_get_info(device)[0]
        least = MIN_CUDA_BUFFER_BYTES
    else:
        cache, available, least = last_level_cache_bytes(), processor.available_memory_bytes(), 0
    wanted = buffer_bytes or max(CACHE_MULTIPLE * max(cache or 0, ASSUMED_CACHE_BYTES), least)
    target = min(wanted, int(available * MEMORY_SHARE))
    with torch.inference_mode():
        matrices = _fill(target, getattr(torch, dtype), device)
        seconds = _pass_seconds(matrices, device, deadline)
    size, kernel = sum(matrix.nbytes for matrix in matrices), min(seconds, key=seconds.__getitem__)
    limited: Literal["memory", "time"] | None = "time" if size < target else "memory" if target < wanted else None
    return BandwidthReading(size / seconds[kernel], size, kernel, cache, limited)


def _fill(target: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return touched matrices ``[rows, COLUMNS]``: ``target`` bytes rounded up to rows, or what time allows."""
    import torch

    deadline = time.perf_counter() + FILL_BUDGET_S
    row_bytes = COLUMNS * dtype.itemsize
    matrices: list[Tensor] = []
    missing = max(target, row_bytes)
    while missing > 0 and (not matrices or time.perf_counter() < deadline):
        rows = -(-min(missing, BLOCK_BYTES) // row_bytes)
        matrices.append(torch.full((rows, COLUMNS), 0.01, dtype=dtype, device=device))
        missing -= rows * row_bytes
    return matrices


def _pass_seconds(matrices: list[Tensor], device: str, deadline: float) -> dict[str, float]:
    """Return the median seconds of one pass over all matrices, by kernel."""
    import torch
    from torch.nn.functional import linear

    row = torch.ones((1, COLUMNS), dtype=matrices[0].dtype, device=device)
    vector, columns = row[0], torch.ones((2, COLUMNS), dtype=matrices[0].dtype, device=device).t()
    kernels: dict[str, Callable[[Tensor], Tensor]] = {
        "torch.nn.functional.linear": lambda matrix: linear(row, matrix),  # [1, rows]
        "torch.mv": lambda matrix: torch.mv(matrix, vector),  # [rows]
        "torch.mm": lambda matrix: torch.mm(matrix, columns),  # [rows, 2]
    }
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    for round_ in range(1 + MAX_ROUNDS):
        for name, kernel in kernels.items():
            seconds[name].append(_seconds(lambda: [kernel(matrix) for matrix in matrices], device))  # noqa: B023
        if round_ and time.perf_counter() > deadline:
            break
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first one warms up


def _seconds(work: Callable[[], object], device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def last_level_cache_bytes(root: Path = SYSFS_CPU) -> int | None:
    """Return the size of the last-level cache, all its instances together; ``None`` if it cannot be read.

    A virtual machine shows the host's cache, of which it gets a part: the value errs to the safe side.
    """
    instances: dict[tuple[int, str], int] = {}
    for cache in root.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, kind, shared, size = (
                (cache / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "shared_cpu_list", "size")
            )
        except OSError:  # some virtual machines leave files out
            continue
        if kind != "Instruction":
            instances[int(level), shared] = int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
    last = max((level for level, _ in instances), default=0)
    return sum(size for (level, _), size in instances.items() if level == last) or None


SMALLEST, LARGEST = 256, 8192
LONG_ENOUGH_S = 0.01
"""A pass so long drowns the dispatch; the matrices grow until it takes that long."""

BUDGET_S = 0.4
COMPUTE_ROUNDS = 8


def measure_compute(dtype: str, device: str, *, budget_s: float = BUDGET_S) -> tuple[float, int]:
    """Return floating-point operations per second of a square matrix product, and its rows, in about half a second.

    The best pass of the largest size tried counts, because a peak is what the device can do when nothing disturbs it.
    On a GPU torch's present setting for TF32 applies.
    """
    import torch

    deadline = time.perf_counter() + budget_s
    size = SMALLEST
    with torch.inference_mode():
        while True:
            left = torch.full((size, size), 0.01, dtype=getattr(torch, dtype), device=device)
            right, product = left.clone(), torch.empty_like(left)

            def multiply(left: Tensor = left, right: Tensor = right, product: Tensor = product) -> None:
                torch.mm(left, right, out=product)

            _seconds(multiply, device)  # warm-up: pages, thread pool, kernel choice
            best = _seconds(multiply, device)
            # a pass of twice the size takes eight times as long, twice with its warm-up
            room = time.perf_counter() + 16 * best < deadline
            if best >= LONG_ENOUGH_S or size >= LARGEST or not room:
                break
            size *= 2
        for _ in range(COMPUTE_ROUNDS):
            if time.perf_counter() > deadline:
                break
            best = min(best, _seconds(multiply, device))
    return 2 * size**3 / best, size


OPERATIONS = 500
DISPATCH_ROUNDS = 30


def measure_dispatch(device: str, *, operations: int = OPERATIONS, rounds: int = DISPATCH_ROUNDS) -> float:
    """Return the seconds of adding two numbers with torch from Python, the median round's, in about 50 ms.

    A decode step of a small model is hundreds of operations on one token; no speed predicted from bytes or FLOPs can be
    reached where this floor times their number is the larger part of the step. On a GPU operations are queued back to
    back, so it is the longer of issuing and launching one.
    """
    import torch

    with torch.inference_mode():
        number = torch.ones(1, device=device)

        def add() -> None:
            for _ in range(operations):
                torch.add(number, number)

        seconds = [_seconds(add, device) / operations for _ in range(rounds + 1)]
    return statistics.median(seconds[1:])


READS = 20_000


def measure_timer(read: Callable[[], float] = time.perf_counter, reads: int = READS) -> tuple[float | None, int]:
    """Read the clock behind every latency in a row, some milliseconds long."""
    values = [read() for _ in range(reads)]
    steps = [later - earlier for earlier, later in pairwise(values)]
    return min((step for step in steps if step > 0), default=None), sum(step < 0 for step in steps)


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
    """Measure what decides how far numbers of this machine can be trusted."""
    import torch

    missing: dict[str, str] = {}
    watch, started = LoadWatch(), time.perf_counter()
    facts: dict[str, Any] = {}
    stage("memory bandwidth")
    bandwidth = _unless_memory_runs_out("bandwidth", missing, lambda: measure_bandwidth(dtype, device))
    for name in BandwidthReading.__slots__ if bandwidth is not None else ():
        facts[f"bandwidth_{name}"] = getattr(bandwidth, name)
    stage("matrix products")
    compute = _unless_memory_runs_out("gemm", missing, lambda: measure_compute(dtype, device))
    facts["gemm_flops_per_s"], facts["gemm_size"] = compute or (None, None)
    stage("dispatch, clocks and load")
    facts["dispatch_s"] = measure_dispatch(device)
    facts["timer_resolution_s"], facts["timer_backward_steps"] = measure_timer()
    facts["clock_mhz"], facts["clock_source"] = processor.clock() or (None, None)
    time.sleep(max(0.0, SHORTEST_LOOK_S - (time.perf_counter() - started)))
    load = watch.read()
    if isinstance(load, str):
        missing["foreign_cpu_s"] = load
    else:
        facts |= {"load_span_s": load.span_s, "load_cores": load.cores, "own_cpu_s": load.own_cpu_s}
        facts |= {"foreign_cpu_s": load.foreign_cpu_s, "stolen_cpu_s": load.stolen_cpu_s}
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
        governors=processor.governors(),
        timer=time.get_clock_info("perf_counter").implementation,
        meter=meter,
        meter_description=meter_description,
        meter_measured=meter_measured,
        sensors=tuple(sensors),
        scores_missing=tuple(scores_missing),
        missing=missing,
        **facts,
    )


def _unless_memory_runs_out(what: str, missing: dict[str, str], measure: Callable[[], _Reading]) -> _Reading | None:
    try:
        return measure()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        missing[what] = "no memory left for the measurement"
        return None
