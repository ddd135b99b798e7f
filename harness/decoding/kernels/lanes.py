"""Dot products over sixteen lanes, for every way in which a row of weights is stored.

A dot product is sixteen running sums, one a lane, each a chain of fused multiply-adds, added pairwise at the end. The
order is the same whatever is computed beside it: a row's product has the same bits alone and in a batch, and on every
processor that has fused multiply-adds. LLVM maps the lanes to the vector registers there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils as untyped
from numba.extending import intrinsic

compiled: Any = partial(njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Compiles a function that only compiled ones call."""

c_function: Any = cfunc(types.void(types.voidptr), nogil=True, error_model="numpy")
"""Compiles a function of one pointer, which C calls."""

_lowered: Any = intrinsic  # written in LLVM's instructions; a call needs no typing context

LANES = 16
STEP = 2 * LANES
"""Weights that are read together: rows of weights are padded to a multiple."""

_WIDE = "avx512f" in llvm.get_host_cpu_features()
_ROWS, COLUMNS = (4, 4) if _WIDE else (2, 2)  # of a tile, so that its sums stay in registers
MANY = 5
"""Rows from which on weights are widened before they are multiplied."""

_emit: Any = untyped
_I8, _I32, _I64, _HALF, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.HalfType(), ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)


def _load(build: Any, address: Any, kind: Any, count: int = LANES) -> Any:
    vector = kind if count == 1 else ir.VectorType(kind, count)
    return build.load(build.inttoptr(address, vector.as_pointer()), align=1)


def _add(build: Any, address: Any, offset: int) -> Any:
    return build.add(address, _I64(offset))


def _fused(build: Any, one: Any, other: Any, plus: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return build.call(_emit.get_or_insert_function(build.module, kind, "llvm.fma.v16f32"), [one, other, plus])


def _everywhere(build: Any, number: Any) -> Any:
    nothing = ir.Constant(_FLOATS, ir.Undefined)
    first = build.insert_element(nothing, number, _I32(0))
    return build.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _sum(build: Any, lanes: Any) -> Any:
    count = LANES
    while count > 1:
        count //= 2
        nothing = ir.Constant(lanes.type, ir.Undefined)
        halves = [
            build.shuffle_vector(lanes, nothing, ir.Constant(ir.VectorType(_I32, count), list(places)))
            for places in (range(count), range(count, 2 * count))
        ]
        lanes = build.fadd(*halves)
    return build.extract_element(lanes, _I32(0))


def prefetch(build: Any, address: Any) -> None:
    """Ask for what is read soon: left to itself, a processor may read half as fast."""
    byte = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    function = _emit.get_or_insert_function(build.module, kind, "llvm.prefetch.p0")
    build.call(function, [build.inttoptr(address, byte), _I32(0), _I32(3), _I32(1)])


class Bits(ABC):
    """How a row of weights is stored, and how its numbers are read. Emits LLVM's instructions.

    Attributes:
        step_bytes: of 32 weights.
        header_bytes: before the first of them.
    """

    step_bytes: ClassVar[int]
    header_bytes: ClassVar[int] = 0

    @abstractmethod
    def read(self, build: Any, row: Any, step: Any) -> Sequence[Any]:
        """Return a row's next 32 weights as two vectors of floats.

        Args:
            build: LLVM's builder.
            row: address of the row.
            step: how many times 32 weights stand before them.
        """

    def finish(self, build: Any, row: Any, product: Any) -> Any:
        """Return a product from the product with what :meth:`read` gave."""
        return product


class Float32(Bits):
    """Plain numbers of 32 bits, such as keys in a cache."""

    step_bytes = 4 * STEP

    def read(self, build: Any, row: Any, step: Any) -> Sequence[Any]:
        """Load them."""
        start = build.add(row, build.mul(step, _I64(self.step_bytes)))
        return [_load(build, _add(build, start, 4 * LANES * half), _FLOAT) for half in range(2)]


class Fp16(Bits):
    """Numbers in half precision."""

    step_bytes = 2 * STEP

    def read(self, build: Any, row: Any, step: Any) -> Sequence[Any]:
        """Widen them."""
        start = build.add(row, build.mul(step, _I64(self.step_bytes)))
        return [build.fpext(_load(build, _add(build, start, 2 * LANES * half), _HALF), _FLOATS) for half in range(2)]


class Int8(Bits):
    """A float32 scale, then whole numbers of 8 bits."""

    step_bytes, header_bytes = STEP, 4

    def read(self, build: Any, row: Any, step: Any) -> Sequence[Any]:
        """Widen the whole numbers."""
        start = build.add(row, build.add(build.mul(step, _I64(self.step_bytes)), _I64(self.header_bytes)))
        wide = ir.VectorType(_I32, LANES)
        return [
            build.sitofp(build.sext(_load(build, _add(build, start, LANES * half), _I8), wide), _FLOATS)
            for half in range(2)
        ]

    def finish(self, build: Any, row: Any, product: Any) -> Any:
        """Scale the sum."""
        return build.fmul(product, _load(build, row, _FLOAT, 1))


class Int4(Bits):
    """Per 32 weights a scale and the least in half precision, then 16 bytes: weight i below, weight i + 16 above."""

    step_bytes = 20

    def read(self, build: Any, row: Any, step: Any) -> Sequence[Any]:
        """Make level · scale + least of each."""
        start = build.add(row, build.mul(step, _I64(self.step_bytes)))
        scale, least = (
            _everywhere(build, build.fpext(_load(build, _add(build, start, offset), _HALF, 1), _FLOAT))
            for offset in (0, 2)
        )
        pairs = _load(build, _add(build, start, 4), _I8)
        low = build.and_(pairs, ir.Constant(pairs.type, [15] * LANES))
        high = build.lshr(pairs, ir.Constant(pairs.type, [4] * LANES))
        wide = ir.VectorType(_I32, LANES)
        return [_fused(build, build.uitofp(build.zext(level, wide), _FLOATS), scale, least) for level in (low, high)]


def _tile(bits: Bits, rows: int, columns: int, widened: bool = False) -> Callable[..., None]:
    """Return an intrinsic: products of so many rows with so many rows of weights, which stand as columns of the result.

    Its arguments: address of the first row of weights and bytes from one to the next; where they stand as floats, one
    behind the other, if ``widened``; address of the first row and bytes from one to the next; their width, a multiple
    of 32; address of the result and numbers from a row to the next.
    """

    @_lowered
    def tile(
        _: Any, weights: Any, stride: Any, floats: Any, x: Any, x_stride: Any, width: Any, out: Any, out_stride: Any
    ) -> Any:
        def emit(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
            weights, stride, floats, x, x_stride, width, out, out_stride = arguments
            of_weights = [build.add(weights, build.mul(_I64(column), stride)) for column in range(columns)]
            of_x = [build.add(x, build.mul(_I64(row), x_stride)) for row in range(rows)]
            reader, read_from, tile_bytes = bits, of_weights, build.mul(stride, _I64(columns))
            if widened:
                reader, float_stride = Float32(), build.mul(width, _I64(4))
                read_from = [build.add(floats, build.mul(_I64(column), float_stride)) for column in range(columns)]
            sums = [[_emit.alloca_once(build, _FLOATS) for _ in range(columns)] for _ in range(rows)]
            for sums_of_row in sums:
                for one in sums_of_row:
                    build.store(ir.Constant(_FLOATS, [0.0] * LANES), one)
            with _emit.for_range(build, build.udiv(width, _I64(STEP))) as loop:
                read = [Float32().read(build, row, loop.index) for row in of_x]
                for column, at in enumerate(read_from):
                    if not widened:
                        ahead = build.add(build.mul(loop.index, _I64(bits.step_bytes)), tile_bytes)
                        prefetch(build, build.add(at, ahead))
                    halves = reader.read(build, at, loop.index)
                    for row in range(rows):
                        for half, mine in zip(halves, read[row], strict=True):
                            one = sums[row][column]
                            build.store(_fused(build, half, mine, build.load(one)), one)
            for row in range(rows):
                for column in range(columns):
                    product = bits.finish(build, of_weights[column], _sum(build, build.load(sums[row][column])))
                    place = build.add(build.mul(_I64(row), out_stride), _I64(column))
                    address = build.add(out, build.mul(place, _I64(4)))
                    build.store(product, build.inttoptr(address, _FLOAT.as_pointer()))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), emit

    return tile


def _widen(bits: Bits) -> Callable[..., None]:
    """Return an intrinsic that writes a row of weights as floats, and asks for another.

    Its arguments: address of the row, of what is asked for, the width, where to.
    """

    @_lowered
    def widen(_: Any, weights: Any, following: Any, width: Any, out: Any) -> Any:
        def emit(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
            weights, following, width, out = arguments
            with _emit.for_range(build, build.udiv(width, _I64(STEP))) as loop:
                prefetch(build, build.add(following, build.mul(loop.index, _I64(bits.step_bytes))))
                to = build.add(out, build.mul(loop.index, _I64(4 * STEP)))
                for place, half in enumerate(bits.read(build, weights, loop.index)):
                    address = build.inttoptr(_add(build, to, 4 * LANES * place), _FLOATS.as_pointer())
                    build.store(half, address, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), emit

    return widen


def product_of(bits: Bits) -> Callable[..., None]:
    """Return a compiled function: some columns of ``x @ weights.T``.

    Its arguments: address of the weights and bytes from a row to the next; first and last column; address of the rows,
    bytes from one to the next, and their number; their width; address of the result and numbers from a row to the next;
    room for ``COLUMNS`` rows of floats, used from ``MANY`` rows on.
    """
    high, wide = _ROWS, COLUMNS
    one_row, two_by_wide = one_row_of(bits), _tile(bits, 2, wide)
    high_by_wide, high_by_floats = _tile(bits, high, wide), _tile(bits, high, wide, widened=True)
    two_by_floats, one_by_floats = _tile(bits, 2, wide, widened=True), _tile(bits, 1, wide, widened=True)
    widen = _widen(bits)

    @compiled
    def product(
        weights: int, stride: int, start: int, end: int, x: int, x_stride: int, rows: int, width: int, out: int,
        out_stride: int, room: int,
    ) -> None:  # fmt: skip
        whole = start + (end - start) // wide * wide
        for column in range(start, whole, wide):
            these, row, place = weights + column * stride, 0, out + 4 * column
            if rows >= MANY:  # widened once, and read from the nearest cache
                for one in range(wide):
                    widen(these + one * stride, these + (one + wide) * stride, width, room + 4 * one * width)
                while row + high <= rows:
                    at, to = x + row * x_stride, place + 4 * row * out_stride
                    high_by_floats(these, stride, room, at, x_stride, width, to, out_stride)
                    row += high
                if row + 2 <= rows:
                    at, to = x + row * x_stride, place + 4 * row * out_stride
                    two_by_floats(these, stride, room, at, x_stride, width, to, out_stride)
                    row += 2
                if row < rows:
                    at, to = x + row * x_stride, place + 4 * row * out_stride
                    one_by_floats(these, stride, room, at, x_stride, width, to, out_stride)
                    row += 1
            while row + high <= rows:
                at, to = x + row * x_stride, place + 4 * row * out_stride
                high_by_wide(these, stride, 0, at, x_stride, width, to, out_stride)
                row += high
            if row + 2 <= rows:
                at, to = x + row * x_stride, place + 4 * row * out_stride
                two_by_wide(these, stride, 0, at, x_stride, width, to, out_stride)
                row += 2
            if row < rows:
                one_row(weights, stride, column, column + wide, x + row * x_stride, width, out + 4 * row * out_stride)
        for row in range(rows if whole < end else 0):
            one_row(weights, stride, whole, end, x + row * x_stride, width, out + 4 * row * out_stride)

    return product


def one_row_of(bits: Bits) -> Callable[..., None]:
    """Return a compiled function: some columns of one row's product.

    Its arguments: address of the weights and bytes from a row to the next; first and last column; address of the row,
    and its width; address of the result.
    """
    wide = COLUMNS
    one_by_one, one_by_wide = _tile(bits, 1, 1), _tile(bits, 1, wide)

    @compiled
    def one_row(weights: int, stride: int, start: int, end: int, x: int, width: int, out: int) -> None:
        column = start
        while column + wide <= end:
            one_by_wide(weights + column * stride, stride, 0, x, 0, width, out + 4 * column, 0)
            column += wide
        while column < end:
            one_by_one(weights + column * stride, stride, 0, x, 0, width, out + 4 * column, 0)
            column += 1

    return one_row


@compiled
def share(count: int, member: int, members: int) -> tuple[int, int]:
    """Return where a thread's part of so many columns begins and ends: whole tiles."""
    tiles = (count + COLUMNS - 1) // COLUMNS
    return COLUMNS * (tiles * member // members), min(count, COLUMNS * (tiles * (member + 1) // members))


@_lowered
def fetch(_: Any, address: Any) -> Any:
    """Ask for what stands at an address."""

    def emit(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        prefetch(build, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@_lowered
def pointer(_: Any, address: Any) -> Any:
    """Make a pointer of an address."""

    def emit(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        return build.inttoptr(arguments[0], _I8.as_pointer())

    return types.voidptr(types.int64), emit


@_lowered
def call(_: Any, address: Any) -> Any:
    """Call a C function without arguments at an address, and return the ``int`` that it returns."""

    def emit(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        function = build.inttoptr(arguments[0], ir.FunctionType(_I32, []).as_pointer())
        return build.sext(build.call(function, []), _I64)

    return types.int64(types.int64), emit


@compiled
def which(size: int, member: int) -> tuple[int, int]:
    """Return how many threads run this and which of them asks, by the addresses of a team; one where there are none."""
    if size == 0:
        return 1, 0
    return call(size), call(member)


@_lowered
def float_of_bits(_: Any, bits: Any) -> Any:
    """Read 32 bits as a float."""

    def emit(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        return build.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), emit


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
