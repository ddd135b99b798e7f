"""What compiled functions share: numbers at an address, e to a number, waiting for each other."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from harness.decoding.kernels.lanes import call, compiled, float_of_bits, pointer

__all__ = ["exponential", "floats", "reordered", "wait"]

reordered = partial(compiled, fastmath={"reassoc", "contract", "nsz", "arcp"})
"""Lets sums be reordered, the same way for every token; what is not finite stays so."""


@compiled
def floats(address: int, count: int) -> Any:
    """Return numbers at an address."""
    return carray(pointer(address), count, np.float32)


@reordered
def exponential(x: Any) -> Any:
    """Return e to a number that is at most 0, to float32's precision: Cody and Waite's reduction, as in Cephes."""
    bounded = max(x, np.float32(-87.0))
    whole = np.floor(bounded * np.float32(1.44269504088896341) + np.float32(0.5))
    rest = bounded - whole * np.float32(0.693359375)
    rest = rest - whole * np.float32(-2.12194440e-4)
    value = np.float32(1.9875691500e-4)
    value = value * rest + np.float32(1.3981999507e-3)
    value = value * rest + np.float32(8.3334519073e-3)
    value = value * rest + np.float32(4.1665795894e-2)
    value = value * rest + np.float32(1.6666665459e-1)
    value = value * rest + np.float32(5.0000001201e-1)
    value = value * rest * rest + rest + np.float32(1.0)
    return value * float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23)) + (x - x)


@compiled
def wait(barrier: int, members: int) -> None:
    """Wait for the other threads."""
    if members > 1:
        call(barrier)
