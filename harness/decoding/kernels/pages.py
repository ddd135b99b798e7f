"""Memory in pages of two megabytes, where Linux has them.

A token reads all weights once. In pages of four kilobytes the processor looks up an address for each, which took a
quarter of a token's time on a virtual machine.
"""

from __future__ import annotations

import ctypes
import mmap
import threading

import torch
from torch import Tensor

__all__ = ["in_large_pages", "moved"]

_LARGE = 2 << 20
_ROOM = 64 << 20  # bytes that are taken at once, so that small matrices share pages
_LINE = 64
_taken: list[Tensor] = []
_lock = threading.Lock()


def in_large_pages(tensor: Tensor) -> Tensor:
    """Return a CPU tensor that nobody has written to, after asking for large pages; others as they are."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or tensor.device.type != "cpu" or tensor.nbytes < 2 * _LARGE:
        return tensor
    start = -(-tensor.data_ptr() // _LARGE) * _LARGE
    size = (tensor.data_ptr() + tensor.nbytes - start) // _LARGE * _LARGE
    if size > 0:  # an answer is not needed: without large pages all is as right
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)
    return tensor


def moved(data: Tensor) -> Tensor:
    """Return a copy of a CPU tensor of bytes beside those that were moved before it, in large pages."""
    with _lock, torch.inference_mode(mode=False):  # whatever made the first of them
        if not _taken or len(_taken[0]) < data.nbytes + _LINE:
            _taken[:] = [in_large_pages(torch.empty(max(_ROOM, data.nbytes + _LINE), dtype=torch.uint8))]
        (free,) = _taken
        free = free[-free.data_ptr() % _LINE :]
        _taken[:] = [free[data.nbytes :]]
        return free[: data.nbytes].view(data.shape).copy_(data)
