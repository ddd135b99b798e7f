"""LLVM instructions, and what of C and of torch's threads, compiled functions are written with."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from harness.decoding.kernels import COLUMNS

compiled: Any = partial(njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Compiles a function that only compiled ones call."""

reordered: Any = partial(compiled, fastmath={"reassoc", "contract", "nsz", "arcp"})
"""Lets sums be reordered, the same way for every token; what is not finite stays so."""

c_function: Any = cfunc(types.void(types.voidptr), nogil=True, error_model="numpy")
"""Compiles a function of one pointer, which C calls."""

PRODUCT = types.void(*[types.int64] * 10)
"""Signature of a compiled product (:func:`harness.decoding.kernels.panels.product_of`)."""

_tuple: Any = types.UniTuple
lowered: Any = intrinsic  # written in LLVM's instructions; a call needs no typing context
emit: Any = cgutils
I8, I32, I64, HALF, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.HalfType(), ir.FloatType()


def prefetch(build: Any, address: Any) -> None:
    """Ask for what is read soon: left to itself, a processor may read half as fast."""
    byte = I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = emit.get_or_insert_function(build.module, kind, "llvm.prefetch.p0")
    build.call(function, [build.inttoptr(address, byte), I32(0), I32(3), I32(1)])


@lowered
def pointer(_: Any, address: Any) -> Any:
    """Make a pointer of an address."""

    def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        return build.inttoptr(arguments[0], I8.as_pointer())

    return types.voidptr(types.int64), make


@lowered
def call(_: Any, address: Any) -> Any:
    """Call a C function without arguments at an address, and return the ``int`` that it returns."""

    def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        function = build.inttoptr(arguments[0], ir.FunctionType(I32, []).as_pointer())
        return build.sext(build.call(function, []), I64)

    return types.int64(types.int64), make


@lowered
def multiply(_: Any, address: Any, given: Any) -> Any:
    """Call the product at an address with its ten arguments."""

    def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        function = build.inttoptr(arguments[0], ir.FunctionType(ir.VoidType(), [I64] * 10).as_pointer())
        build.call(function, emit.unpack_tuple(build, arguments[1]))
        return context.get_dummy_value()

    return types.void(types.int64, _tuple(types.int64, 10)), make


@lowered
def float_of_bits(_: Any, bits: Any) -> Any:
    """Read 32 bits as a float."""

    def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        return build.bitcast(arguments[0], FLOAT)

    return types.float32(types.int32), make


@compiled
def which(size: int, member: int) -> tuple[int, int]:
    """Return how many threads run this and which of them asks, by the addresses of a team; one where there are none."""
    if size == 0:
        return 1, 0
    return call(size), call(member)


@compiled
def wait(barrier: int, members: int) -> None:
    """Wait for the other threads."""
    if members > 1:
        call(barrier)


@compiled
def floats(address: int, count: int) -> Any:
    """Return numbers at an address."""
    return carray(pointer(address), count, np.float32)


@reordered
def dots(rows: int, width: int, first: int, last: int, x: int, out: int) -> None:
    """Put dot products of some rows of floats with one into a result; all by their addresses."""
    numbers, vector, products = floats(rows, last * width), floats(x, width), floats(out, last)
    for row in range(first, last):
        total = np.float32(0.0)
        for place in range(width):
            total += numbers[row * width + place] * vector[place]
        products[row] = total


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
def share(count: int, member: int, members: int) -> tuple[int, int]:
    """Return where a thread's part of so many columns begins and ends: whole panels."""
    panels = (count + COLUMNS - 1) // COLUMNS
    return COLUMNS * (panels * member // members), min(count, COLUMNS * (panels * (member + 1) // members))
