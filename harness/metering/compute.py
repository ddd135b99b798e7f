"""Peak arithmetic of the device: matrix × matrix, as prefill and training use it.

Beside the bandwidth it is the machine's second limit: prefill multiplies a whole prompt at once and is
bound by this one. The best of a few passes counts, because a peak is what the device can do when nothing
disturbs it.

Not promised: the vendor's figure. It is reached with larger matrices and fused kernels only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from harness.metering.window import synchronise

__all__ = ["ComputeReading", "measure_compute"]

SMALLEST, LARGEST = 256, 8192
LONG_ENOUGH_S = 0.01
"""A pass so long drowns the dispatch; the matrices grow until it takes that long."""

BUDGET_S = 0.4
ROUNDS = 8


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
        for _ in range(ROUNDS):
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
