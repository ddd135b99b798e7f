"""Products of packed matrices with rows, in panels of columns.

A *panel* holds the weights of :data:`COLUMNS` outputs side by side, input after input. A product reads an input's
weights into two vectors, multiplies them with that input of each row, and adds; every output is one chain of fused
multiply-adds in the order of the inputs. So a row's product has the same bits alone, among a thousand, and on every
processor that has fused multiply-adds; nothing is added across lanes, and unpacking is shared by all rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import llvmlite.binding as llvm
from llvmlite import ir
from numba import cfunc, types

from harness.decoding.kernels import COLUMNS, FLOAT32, FP16, GROUP, INT4, INT8, Kind
from harness.decoding.kernels.instructions import (
    FLOAT,
    HALF,
    I8,
    I32,
    I64,
    PRODUCT,
    emit,
    lowered,
    prefetch,
)

WIDE = llvm.get_host_cpu_features().get("avx512f", False)
LANES = 16 if WIDE else 8
VECTORS = COLUMNS // LANES
_BLOCK = 128  # inputs that are widened together, for as many rows as there are
_TOGETHER = 4  # inputs of a turn of the inner loop
AHEAD = 1536  # bytes that are asked for before they are read
_SUMS = 24 if WIDE else 12  # vectors of a tile, so that they stay in registers
_SIDE = 2 if WIDE else 1  # widened panels that are multiplied together
_MOST_SIDES, _CHAINS = (4, _SUMS) if WIDE else (2, 8)  # panels and sums that go on at once, so that none waits
MANY = 9 if WIDE else 4
"""Rows from which on weights are widened before they are multiplied."""

FLOATS, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)


def load(build: Any, address: Any, kind: Any, count: int = LANES) -> Any:
    """Load a vector, or a number."""
    vector = kind if count == 1 else ir.VectorType(kind, count)
    return build.load(build.inttoptr(address, vector.as_pointer()), align=1)


def loads(build: Any, address: Any, kind: Any, size: int) -> list[Any]:
    """Load :data:`COLUMNS` numbers of so many bytes."""
    return [load(build, add(build, address, size * first), kind) for first in range(0, COLUMNS, LANES)]


def store(build: Any, value: Any, address: Any) -> None:
    """Store a vector."""
    build.store(value, build.inttoptr(address, value.type.as_pointer()), align=4)


def add(build: Any, address: Any, offset: int) -> Any:
    """Return an address so many bytes on."""
    return build.add(address, I64(offset))


def fused(build: Any, one: Any, other: Any, plus: Any) -> Any:
    """Multiply two vectors and add a third, rounding once."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return build.call(emit.get_or_insert_function(build.module, kind, f"llvm.fma.v{LANES}f32"), [one, other, plus])


def everywhere(build: Any, number: Any) -> Any:
    """Return a vector of one number."""
    nothing = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    first = build.insert_element(nothing, number, I32(0))
    return build.shuffle_vector(first, nothing, ir.Constant(INTS, [0] * LANES))


class Bits(ABC):
    """How a panel's weights are stored, and how they are read. Emits LLVM's instructions."""

    kind: ClassVar[Kind]

    def product(self) -> Any:
        """Compile a product: :func:`product_of`."""
        return product_of(self)

    def begin(self, build: Any, panel: Any, group: Any) -> Any:
        """Return what the weights of a group share: addresses of the panel and of the group are given."""
        return None

    @abstractmethod
    def read(self, build: Any, at: Any, shared: Any) -> Sequence[Any]:
        """Return the weights of one input, which lie there, as vectors of floats."""

    def finish(self, build: Any, panel: Any, sums: Sequence[Any]) -> Sequence[Any]:
        """Return products from sums."""
        return sums


class Float32(Bits):
    """Plain numbers: widened weights."""

    kind = FLOAT32

    def read(self, build: Any, at: Any, shared: Any) -> Sequence[Any]:
        """Load them."""
        return loads(build, at, FLOAT, 4)


class Fp16(Bits):
    """Numbers in half precision."""

    kind = FP16

    def read(self, build: Any, at: Any, shared: Any) -> Sequence[Any]:
        """Widen them."""
        return [build.fpext(one, FLOATS) for one in loads(build, at, HALF, 2)]


class Int8(Bits):
    """A float32 scale for each output, then whole numbers of 8 bits."""

    kind = INT8

    def read(self, build: Any, at: Any, shared: Any) -> Sequence[Any]:
        """Widen the whole numbers."""
        return [build.sitofp(build.sext(level, INTS), FLOATS) for level in loads(build, at, I8, 1)]

    def finish(self, build: Any, panel: Any, sums: Sequence[Any]) -> Sequence[Any]:
        """Scale each output."""
        return [build.fmul(one, scale) for one, scale in zip(sums, loads(build, panel, FLOAT, 4), strict=True)]


class Int4(Bits):
    """Of each 32 inputs scales and least weights in half precision, then half a byte a weight, low halves first."""

    kind = INT4

    def begin(self, build: Any, panel: Any, group: Any) -> Any:
        """Widen scales and least weights."""
        halves = loads(build, group, HALF, 2) + loads(build, add(build, group, 2 * COLUMNS), HALF, 2)
        return [build.fpext(half, FLOATS) for half in halves]

    def read(self, build: Any, at: Any, shared: Any) -> Sequence[Any]:
        """Make level · scale + least of each."""
        pairs = [build.zext(load(build, add(build, at, offset), I8), INTS) for offset in range(0, COLUMNS // 2, LANES)]
        levels = [build.and_(pair, ir.Constant(INTS, [15] * LANES)) for pair in pairs]
        levels += [build.lshr(pair, ir.Constant(INTS, [4] * LANES)) for pair in pairs]
        return [
            fused(build, build.uitofp(level, FLOATS), scale, least)
            for level, scale, least in zip(levels, shared[:VECTORS], shared[VECTORS:], strict=True)
        ]


def _tile(build: Any, bits: Bits, rows: int, panels: int, where: Any, groups: Any, of: Any, to: Any, adds: Any) -> None:
    """Emit products of so many rows with so many panels.

    ``where``: addresses of the first panel and of the first group in it, and bytes from a panel to the next; ``of``:
    address of the first row and bytes from one to the next; ``to``: address of the result and numbers from a row to the
    next; ``adds``: whether they are added to what is there, ``None`` for never.
    """
    panel, first, apart = where
    of_x = [build.add(of[0], build.mul(I64(row), of[1])) for row in range(rows)]
    of_out = [build.add(to[0], build.mul(I64(4 * row), to[1])) for row in range(rows)]
    offsets = [build.mul(I64(side), apart) for side in range(panels)]
    outputs = range(0, panels * COLUMNS, LANES)
    sums = [[emit.alloca_once(build, FLOATS) for _ in outputs] for _ in range(rows)]
    for one in (one for mine in sums for one in mine):
        build.store(ir.Constant(FLOATS, [0.0] * LANES), one)
    if adds is not None:
        with build.if_then(adds):
            for mine, address in zip(sums, of_out, strict=True):
                for one, output in zip(mine, outputs, strict=True):
                    build.store(load(build, add(build, address, 4 * output), FLOAT), one)
    with emit.for_range(build, groups) as loop:
        at = build.add(first, build.mul(loop.index, I64(bits.kind.group_bytes)))
        x_at = [build.add(row, build.mul(loop.index, I64(4 * GROUP))) for row in of_x]
        shared = [bits.begin(build, build.add(panel, one), build.add(at, one)) for one in offsets]
        with emit.for_range(build, I64(GROUP // _TOGETHER)) as inner:
            start = build.mul(inner.index, I64(_TOGETHER * bits.kind.input_bytes))
            start = build.add(at, add(build, start, bits.kind.group_header_bytes))
            starts = [build.add(start, one) for one in offsets]
            for one in () if isinstance(bits, Float32) else starts:
                for line in range(0, _TOGETHER * bits.kind.input_bytes, 64):
                    prefetch(build, add(build, one, AHEAD + line))
            rows_at = [build.add(row, build.mul(inner.index, I64(4 * _TOGETHER))) for row in x_at]
            for place in range(_TOGETHER):
                weights = [
                    vector
                    for one, what in zip(starts, shared, strict=True)
                    for vector in bits.read(build, add(build, one, place * bits.kind.input_bytes), what)
                ]
                for mine, row in zip(sums, rows_at, strict=True):
                    number = everywhere(build, load(build, add(build, row, 4 * place), FLOAT, 1))
                    for one, weight in zip(mine, weights, strict=True):
                        build.store(fused(build, weight, number, build.load(one)), one)
    for mine, address in zip(sums, of_out, strict=True):
        for side, offset in enumerate(offsets):
            made = [build.load(one) for one in mine[side * VECTORS : (side + 1) * VECTORS]]
            for one, output in zip(
                bits.finish(build, build.add(panel, offset), made), outputs[side * VECTORS :], strict=False
            ):
                store(build, one, add(build, address, 4 * output))


def _few(bits: Bits) -> Callable[..., None]:
    """Return an intrinsic: products of fewer than :data:`MANY` rows with panels.

    Weights are read once, and as many panels at a time as keep the processor busy. Its arguments: address of the first
    panel, bytes from one to the next, and how many; groups; address of the rows, bytes from one to the next, and their
    number; address of the result and numbers from a row to the next.
    """

    @lowered
    def few(
        _: Any, panel: Any, apart: Any, panels: Any, groups: Any, x: Any, stride: Any, rows: Any, out: Any, width: Any
    ) -> Any:
        def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
            panel, apart, panels, groups, x, stride, rows, out, width = arguments

            def multiply(height: int, side: int, first: Any, count: Any) -> None:
                with emit.for_range(build, count) as loop:
                    number = build.add(first, build.mul(loop.index, I64(side)))
                    at = build.add(panel, build.mul(number, apart))
                    to = build.add(out, build.mul(number, I64(4 * COLUMNS)))
                    where = at, add(build, at, bits.kind.header_bytes), apart
                    _tile(build, bits, height, side, where, groups, (x, stride), (to, width), None)

            for height in range(1, MANY):
                side = max(1, min(_MOST_SIDES, _CHAINS // (height * VECTORS)))
                with build.if_then(build.icmp_signed("==", rows, I64(height))):
                    count = build.sdiv(panels, I64(side))
                    multiply(height, side, I64(0), count)
                    if side > 1:
                        done = build.mul(count, I64(side))
                        multiply(height, 1, done, build.sub(panels, done))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), make

    return few


def _many(side: int) -> Callable[..., None]:
    """Return an intrinsic: products of any rows with so many widened panels, added to what was there where asked to.

    Its arguments: address of the panels, numbers of one, and groups; address of the rows, bytes from one to the next,
    and their number; address of the result and numbers from a row to the next; whether to add.
    """

    @lowered
    def many(
        _: Any, panel: Any, apart: Any, groups: Any, x: Any, stride: Any, rows: Any, out: Any, width: Any, adds: Any
    ) -> Any:
        def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
            panel, apart, groups, x, stride, rows, out, width, adds = arguments
            adds, done = build.icmp_signed("!=", adds, I64(0)), I64(0)
            most = max(1, _SUMS // (side * VECTORS))
            for height in sorted({most, min(most, 4), 2, 1}, reverse=True):
                count = build.sdiv(build.sub(rows, done), I64(height))
                with emit.for_range(build, count) as loop:
                    row = build.add(done, build.mul(loop.index, I64(height)))
                    of = build.add(x, build.mul(row, stride)), stride
                    to = build.add(out, build.mul(build.mul(I64(4), row), width)), width
                    _tile(build, Float32(), height, side, (panel, panel, apart), groups, of, to, adds)
                done = build.add(done, build.mul(count, I64(height)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), make

    return many


def _widen(bits: Bits) -> Callable[..., None]:
    """Return an intrinsic that writes groups of a panel as floats; its arguments: panel, group, how many, where to."""

    @lowered
    def widen(_: Any, panel: Any, first: Any, groups: Any, out: Any) -> Any:
        def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
            panel, first, groups, out = arguments
            with emit.for_range(build, groups) as loop:
                at = build.add(first, build.mul(loop.index, I64(bits.kind.group_bytes)))
                to = build.add(out, build.mul(loop.index, I64(4 * COLUMNS * GROUP)))
                shared = bits.begin(build, panel, at)
                for line in range(0, bits.kind.group_bytes, 64):
                    prefetch(build, add(build, at, AHEAD + line))
                with emit.for_range(build, I64(GROUP)) as inner:
                    start = build.add(
                        at,
                        add(build, build.mul(inner.index, I64(bits.kind.input_bytes)), bits.kind.group_header_bytes),
                    )
                    into = build.add(to, build.mul(inner.index, I64(4 * COLUMNS)))
                    for vector, weights in enumerate(bits.read(build, start, shared)):
                        store(build, weights, add(build, into, 4 * vector * LANES))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), make

    return widen


def _finish(bits: Bits) -> Callable[..., None]:
    """Return an intrinsic that makes products of sums: address of the panel, rows, where they are, and to the next."""

    @lowered
    def finish(_: Any, panel: Any, rows: Any, out: Any, width: Any) -> Any:
        def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
            panel, rows, out, width = arguments
            with emit.for_range(build, rows) as loop:
                at = build.add(out, build.mul(build.mul(I64(4), loop.index), width))
                for vector, one in enumerate(bits.finish(build, panel, loads(build, at, FLOAT, 4))):
                    store(build, one, add(build, at, 4 * LANES * vector))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), make

    return finish


def product_of(bits: Bits) -> Any:
    """Compile some columns of ``x @ weights.T`` for a kind of weights, which takes seconds.

    Its arguments: address of the weights and their inputs, a multiple of :data:`GROUP`; first and last column, whole
    panels; address of the rows, bytes from one to the next, and their number; address of the result and numbers from a
    row to the next; room for :data:`ROOM` floats.
    """
    header, group_bytes, block = bits.kind.header_bytes, bits.kind.group_bytes, _BLOCK // GROUP
    widen, few, finish, side = _widen(bits), _few(bits), _finish(bits), _SIDE
    many, one, widened = _many(side), _many(1), _BLOCK * 4 * COLUMNS

    @cfunc(PRODUCT, nogil=True, error_model="numpy")
    def product(
        weights: int, inputs: int, start: int, end: int, x: int, stride: int, rows: int, out: int, out_stride: int,
        room: int,
    ) -> None:  # fmt: skip
        groups = inputs // GROUP
        apart = header + groups * group_bytes
        panel, to = weights + start // COLUMNS * apart, out + 4 * start
        panels = (end - start + COLUMNS - 1) // COLUMNS
        if rows < MANY:
            few(panel, apart, panels, groups, x, stride, rows, to, out_stride)
            return
        while panels > 0:
            together = side if panels >= side else 1
            for group in range(0, groups, block):
                count = min(block, groups - group)
                for number in range(together):
                    first = panel + number * apart
                    widen(first, first + header + group * group_bytes, count, room + number * widened)
                at = x + 4 * GROUP * group
                if together == side:
                    many(room, widened, count, at, stride, rows, to, out_stride, group)
                else:
                    one(room, widened, count, at, stride, rows, to, out_stride, group)
            for number in range(together if header else 0):
                finish(panel + number * apart, rows, to + 4 * number * COLUMNS, out_stride)
            panel, to, panels = panel + together * apart, to + 4 * together * COLUMNS, panels - together

    return product
