"""Memory bandwidth, measured with the kernel that decodes: what decoding's share of it is counted against.

Decoding one token multiplies each weight matrix with one vector: every weight byte is read once and
used once, so the speed limit is how fast this kernel streams matrices that are not in a cache. A
STREAM copy would answer another question (it also writes).

Not promised: the best the machine could do. Other processes share the memory; the median of a few
passes is reported, and beside it what bounded the buffer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.host.processor import available_memory_bytes
from harness.metering.window import synchronise

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """How fast weights stream through matrix × vector.

    Attributes:
        bytes_per_s: weight bytes read per second by ``kernel``, median of the passes.
        buffer_bytes: size of the matrices of one pass.
        dtype: torch dtype name.
        threads: CPU threads; torch's number on a GPU too, where it does not matter.
        kernel: the fastest of ``rates``, for example ``torch.nn.functional.linear``.
        rates: bytes per second of each kernel tried.
        cache_bytes: last-level cache of the device; ``None`` when it cannot be read.
        limited_by: what kept the buffer below ``CACHE_MULTIPLE`` × cache: ``memory`` (a quarter of what
            is available) or ``time`` (fresh pages came too slowly); ``None`` when nothing did.
    """

    bytes_per_s: float
    buffer_bytes: int
    dtype: str
    threads: int
    kernel: str
    rates: Mapping[str, float]
    cache_bytes: int | None
    limited_by: Literal["memory", "time"] | None


def measure_bandwidth(
    dtype: str, device: str, threads: int | None = None, *, buffer_bytes: int | None = None
) -> BandwidthReading:
    """Measure how many weight bytes per second matrix × vector reads, in about two seconds at most.

    Three kernels are tried and the fastest counts: ``torch.nn.functional.linear``, which models call, ``torch.mv``, and
    ``torch.mm`` with the row doubled; on a CPU either of the latter may be twice as fast. A share of a slower one would
    flatter an engine that uses the others.

    Args:
        dtype: torch dtype name of the weights, for example ``bfloat16``.
        device: torch device.
        threads: CPU threads during the measurement; ``None`` leaves torch's number. Restored after.
        buffer_bytes: wanted size of the buffer; ``None`` for ``CACHE_MULTIPLE`` × last-level cache.
    """
    import torch

    deadline = time.perf_counter() + TOTAL_BUDGET_S
    cache = _cuda_cache_bytes(device) if device.startswith("cuda") else last_level_cache_bytes()
    wanted = buffer_bytes or CACHE_MULTIPLE * max(cache or 0, ASSUMED_CACHE_BYTES)
    if device.startswith("cuda") and buffer_bytes is None:
        wanted = max(wanted, MIN_CUDA_BUFFER_BYTES)
    with _thread_count(threads) as used, torch.inference_mode():
        available = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else available_memory_bytes()
        limit = None if available is None else int(available * MEMORY_SHARE)
        target = wanted if limit is None else min(wanted, limit)
        matrices = _fill(target, getattr(torch, dtype), device)
        size = sum(matrix.nbytes for matrix in matrices)
        rates = {name: size / seconds for name, seconds in _pass_seconds(matrices, device, deadline).items()}
    fastest = max(rates, key=lambda name: rates[name])
    limited: Literal["memory", "time"] | None = "time" if size < target else "memory" if target < wanted else None
    return BandwidthReading(rates[fastest], size, dtype, used, fastest, rates, cache, limited)


def _fill(target: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return touched matrices ``[rows, COLUMNS]``: ``target`` bytes rounded up to rows, or what time allows."""
    import torch

    deadline = time.perf_counter() + FILL_BUDGET_S
    row_bytes = torch.empty(COLUMNS, dtype=dtype, device="cpu").nbytes
    matrices: list[Tensor] = []
    missing = max(target, row_bytes)
    while missing > 0 and (not matrices or time.perf_counter() < deadline):
        rows = -(-min(missing, BLOCK_BYTES) // row_bytes)
        matrices.append(torch.full((rows, COLUMNS), 0.01, dtype=dtype, device=device))
        missing -= rows * row_bytes
    return matrices


def _pass_seconds(matrices: list[Tensor], device: str, deadline: float) -> dict[str, float]:
    """Return the median seconds of one pass over all matrices, by kernel; kernels take turns."""
    import torch
    from torch.nn.functional import linear

    row = torch.ones((1, COLUMNS), dtype=matrices[0].dtype, device=device)
    vector, columns = row[0], torch.ones((2, COLUMNS), dtype=matrices[0].dtype, device=device).t()
    kernels: dict[str, Callable[[Tensor], Tensor]] = {
        "torch.nn.functional.linear": lambda matrix: linear(row, matrix),  # [1, rows]
        "torch.mv": lambda matrix: torch.mv(matrix, vector),  # [rows]
        "torch.mm": lambda matrix: torch.mm(matrix, columns),  # [rows, 2]
    }
    for kernel in kernels.values():  # warm-up: page tables, thread pool, kernel choice
        _pass(kernel, matrices, device)
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    for _ in range(MAX_ROUNDS):
        for name, kernel in kernels.items():
            seconds[name].append(_pass(kernel, matrices, device))
        if time.perf_counter() > deadline:
            break
    return {name: statistics.median(values) for name, values in seconds.items()}


def _pass(kernel: Callable[[Tensor], Tensor], matrices: list[Tensor], device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    for matrix in matrices:
        kernel(matrix)
    synchronise(device)
    return time.perf_counter() - started


@contextmanager
def _thread_count(threads: int | None) -> Iterator[int]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


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


def _cuda_cache_bytes(device: str) -> int | None:
    import torch

    return int(torch.cuda.get_device_properties(device).L2_cache_size) or None
