"""One matrix times a few rows: the kernel that reads the matrix fastest on this machine, by precision, shape and rows.

Decoding reads each matrix for one row; where exited tokens catch up, and in a batch, for a few. All that takes time is
the reading, so eight rows should cost little more than one. Which kernel comes near that differs between processors
and shapes (``make bench`` prints them all, ``tests/benchmarks/test_rows.py``): on an AMD EPYC of the fifth generation
MKL reads a float32 matrix with one thread for one row, and with all threads, twice as fast, for two rows from the
other side; ``torch.mv`` takes half the time of ``F.linear`` in bfloat16 on an Intel Xeon, and twice the time there. So
:func:`choose` tries them on a model's own matrices when it is loaded, in a few tenths of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = ["FEW", "KERNELS", "choose", "multiply"]

FEW = 8  # rows, up to which a product takes the time of reading its matrix
COUNTS = (1, 2, 4, 8)  # rows that are tried; three are four, five to seven are eight
ROUNDS = 4
GAIN = 0.9  # of the time of F.linear, to be preferred to it: of two as fast, every run shall take the same
SMALLEST = 1 << 18  # bytes of a matrix, below which what a kernel costs is not the reading
ENOUGH = 32 << 20  # bytes of matrices of one shape; those of other shapes in between empty the caches

Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def from_the_left(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product as weight × rowsᵀ: one row padded to two, three to four, and eight as two times four."""
    if rows.shape[0] > 4:
        return torch.cat([from_the_left(part, weight, bias) for part in torch.split(rows, 4)])
    count = rows.shape[0]
    columns = (F.pad(rows, (0, 0, 0, 1)) if count in (1, 3) else rows).t()
    product = torch.mm(weight, columns) if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    return product.t()[:count].contiguous()


def row_by_row(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A matrix × vector product for each row."""
    product = torch.stack([torch.mv(weight, row) for row in rows])
    return product if bias is None else product + bias


KERNELS: dict[torch.dtype, tuple[Kernel, ...]] = {
    torch.float32: (F.linear, from_the_left),
    torch.bfloat16: (F.linear, row_by_row),
}
"""Kernels on a CPU, the default first."""

_chosen: dict[tuple[torch.dtype, torch.Size, int, int], Kernel] = {}
"""Dtype, shape, rows and threads → the fastest kernel in this process."""


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``rows @ weight.T + bias``, ``[n, in]`` by ``[out, in]`` → ``[n, out]``."""
    count = rows.shape[0]
    if count <= FEW and rows.device.type == "cpu":
        tried = count if count < 3 else 4 if count < 5 else 8
        kernel = _chosen.get((weight.dtype, weight.shape, tried, torch.get_num_threads()), F.linear)
        return kernel(rows, weight, bias)
    return F.linear(rows, weight, bias)


def choose(weights: Iterable[Tensor]) -> None:
    """Find the fastest kernels for products with a model's matrices, with as many threads as torch has now.

    Args:
        weights: matrices ``[out, in]``; those on an accelerator or of another precision keep ``F.linear``.
    """
    threads = torch.get_num_threads()
    groups: dict[tuple[torch.dtype, torch.Size], list[Tensor]] = {}
    for weight in weights:
        known = (weight.dtype, weight.shape, 1, threads) in _chosen
        if not known and weight.device.type == "cpu" and weight.nbytes >= SMALLEST and weight.dtype in KERNELS:
            groups.setdefault((weight.dtype, weight.shape), []).append(weight)
    seconds: dict[tuple[torch.dtype, torch.Size, int, Kernel], list[float]] = {}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for (dtype, shape), matrices in groups.items():
                for count in COUNTS:
                    rows = torch.ones((count, shape[1]), dtype=dtype)
                    for kernel in KERNELS[dtype]:
                        seconds.setdefault((dtype, shape, count, kernel), []).append(_time(kernel, rows, matrices))
    for dtype, shape in groups:
        for count in COUNTS:
            default, *others = KERNELS[dtype]
            best = min(others, key=lambda kernel: min(seconds[dtype, shape, count, kernel]))
            gains = min(seconds[dtype, shape, count, best]) < GAIN * min(seconds[dtype, shape, count, default])
            _chosen[dtype, shape, count, threads] = best if gains else default


def _time(kernel: Kernel, rows: Tensor, matrices: list[Tensor]) -> float:
    """Return the seconds of a product with matrices of ``ENOUGH`` bytes together, per byte."""
    read = 0
    started = time.perf_counter()
    for matrix in matrices:
        kernel(rows, matrix, None)
        read += matrix.nbytes
        if read >= ENOUGH:
            break
    return (time.perf_counter() - started) / read
