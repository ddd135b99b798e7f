"""Products of packed matrices with rows whose activations are rounded to 8 bits.

Each :data:`GROUP` of a row's inputs is rounded to 255 levels of its largest, as llama.cpp rounds activations to its
Q8_0. A panel holds 4 inputs of each output side by side, which one instruction multiplies and adds. Sums of whole
numbers have no order, and those of a row's groups are added one after the other: a row's product has the same bits in
any company and on any processor. What is not finite makes all of its row's products NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import cfunc, types

from harness.decoding import kernels
from harness.decoding.kernels import COLUMNS, GROUP, ROOM, Kind
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
)  # fmt: skip
from harness.decoding.kernels.panels import (
    AHEAD,
    FLOATS,
    INTS,
    LANES,
    VECTORS,
    WIDE,
    add,
    everywhere,
    fused,
    load,
    loads,
    store,
)  # fmt: skip

_QUAD = 4  # inputs that are multiplied together
_BYTES = ir.VectorType(I8, _QUAD * LANES)
_SHORTS = ir.VectorType(ir.IntType(16), 2 * LANES)
_FEATURES = llvm.get_host_cpu_features()
_DOTS = bool(_FEATURES.get("avx512vnni" if WIDE else "avxvnni"))  # dot products of bytes in one instruction
_PAIRS = not WIDE and bool(_FEATURES.get("avx2"))  # or in three
_LEVELS = 127
_MOST = 6 if WIDE else 2  # rows of a tile, so that its sums stay in registers
_FACTS = 12  # bytes of a group of activations: scale; −128 times the sum of levels; that sum times the scale


def _dot(build: Any, plus: Any, unsigned: Any, signed: Any) -> Any:
    """Add dot products of four bytes a lane."""
    if _DOTS:
        bits = 32 * LANES
        name = f"llvm.x86.avx512.vpdpbusd.{bits}"
        kind = _BYTES if llvm.llvm_version_info[0] >= 22 else INTS
        given = [unsigned, signed] if kind is _BYTES else [build.bitcast(one, INTS) for one in (unsigned, signed)]
        function = emit.get_or_insert_function(build.module, ir.FunctionType(INTS, [INTS, kind, kind]), name)
        return build.call(function, [plus, *given])
    if _PAIRS:
        pairs = emit.get_or_insert_function(
            build.module, ir.FunctionType(_SHORTS, [_BYTES, _BYTES]), "llvm.x86.avx2.pmadd.ub.sw"
        )
        sums = emit.get_or_insert_function(
            build.module, ir.FunctionType(INTS, [_SHORTS, _SHORTS]), "llvm.x86.avx2.pmadd.wd"
        )
        ones = ir.Constant(_SHORTS, [1] * 2 * LANES)
        return build.add(plus, build.call(sums, [build.call(pairs, [unsigned, signed]), ones]))
    wide = ir.VectorType(I32, _QUAD * LANES)
    products = build.mul(build.zext(unsigned, wide), build.sext(signed, wide))
    for place in range(_QUAD):
        places = ir.Constant(INTS, [_QUAD * lane + place for lane in range(LANES)])
        plus = build.add(plus, build.shuffle_vector(products, products, places))
    return plus


def _signs(build: Any, levels: Any, activations: Any) -> tuple[Any, Any]:
    """Return magnitudes of activations, and levels with the activations' signs: a pair's sum is within 16 bits."""
    sign = emit.get_or_insert_function(build.module, ir.FunctionType(_BYTES, [_BYTES, _BYTES]), "llvm.x86.avx2.psign.b")
    return build.call(sign, [activations, activations]), build.call(sign, [levels, activations])


class Integers(ABC):
    """How a panel's levels are stored, and what makes numbers of their dot products. Emits LLVM's instructions."""

    kind: ClassVar[Kind]
    shifted: ClassVar[bool] = False  # whether 128 is added to the levels that are multiplied

    def product(self) -> Any:
        """Compile a product: :func:`product_of`."""
        return product_of(self)

    @abstractmethod
    def read(self, build: Any, at: Any) -> Sequence[Any]:
        """Return the levels of four inputs, which lie there, as vectors of bytes."""

    def dot(self, build: Any, plus: Any, levels: Any, activations: Any) -> Any:
        """Add dot products of levels and of activations."""
        return _dot(build, plus, levels, activations)

    def begin(self, build: Any, group: Any) -> Any:
        """Return what the weights of a group share."""
        return None

    @abstractmethod
    def add(self, build: Any, sums: Sequence[Any], dots: Sequence[Any], facts: Sequence[Any], shared: Any) -> list[Any]:
        """Return a row's sums with a group's added, given its facts: scale, and sum of levels, scaled."""

    def finish(self, build: Any, panel: Any, sums: Sequence[Any]) -> Sequence[Any]:
        """Return products from sums."""
        return sums


class W8A8(Integers):
    """A float32 scale for each output, then whole numbers of 8 bits, with 128 added."""

    kind = kernels.W8A8
    shifted = _DOTS or not _PAIRS

    def read(self, build: Any, at: Any) -> Sequence[Any]:
        """Load them."""
        return [load(build, add(build, at, _QUAD * LANES * vector), I8, _QUAD * LANES) for vector in range(VECTORS)]

    def dot(self, build: Any, plus: Any, levels: Any, activations: Any) -> Any:
        """Where a pair's sum would not fit, take the 128 off first."""
        if self.shifted:
            return _dot(build, plus, levels, activations)
        signed = build.xor(levels, ir.Constant(_BYTES, [128] * _QUAD * LANES))
        return _dot(build, plus, *_signs(build, signed, activations))

    def add(self, build: Any, sums: Sequence[Any], dots: Sequence[Any], facts: Sequence[Any], shared: Any) -> list[Any]:
        """Scale dot products."""
        return [fused(build, build.sitofp(dot, FLOATS), facts[0], one) for one, dot in zip(sums, dots, strict=True)]

    def finish(self, build: Any, panel: Any, sums: Sequence[Any]) -> Sequence[Any]:
        """Scale each output."""
        return [build.fmul(one, scale) for one, scale in zip(sums, loads(build, panel, FLOAT, 4), strict=True)]


class W4A8(Integers):
    """Of each 32 inputs scales and least weights in half precision, then half a byte a weight, low halves first."""

    kind = kernels.W4A8

    def read(self, build: Any, at: Any) -> Sequence[Any]:
        """Take halves of bytes apart."""
        size = _QUAD * LANES
        pairs = [load(build, add(build, at, offset), I8, size) for offset in range(0, _QUAD * COLUMNS // 2, size)]
        low = [build.and_(pair, ir.Constant(_BYTES, [15] * size)) for pair in pairs]
        return low + [build.lshr(pair, ir.Constant(_BYTES, [4] * size)) for pair in pairs]

    def begin(self, build: Any, group: Any) -> Any:
        """Widen scales and least weights."""
        halves = loads(build, group, HALF, 2) + loads(build, add(build, group, 2 * COLUMNS), HALF, 2)
        return [build.fpext(half, FLOATS) for half in halves]

    def add(self, build: Any, sums: Sequence[Any], dots: Sequence[Any], facts: Sequence[Any], shared: Any) -> list[Any]:
        """Scale levels, and add the least weights times the sum of activations."""
        scale, total = facts
        made = []
        for one, dot, size, least in zip(sums, dots, shared[:VECTORS], shared[VECTORS:], strict=True):
            plus = fused(build, least, total, one)
            made.append(fused(build, build.sitofp(dot, FLOATS), build.fmul(scale, size), plus))
        return made


def _reduced(build: Any, name: str, vector: Any) -> Any:
    """Return all whole numbers of a vector made into one."""
    kind = ir.FunctionType(I32, [INTS])
    return build.call(
        emit.get_or_insert_function(build.module, kind, f"llvm.vector.reduce.{name}.v{LANES}i32"), [vector]
    )


@lowered
def _round(_: Any, x: Any, count: Any, out: Any) -> Any:
    """Round a row of so many numbers to 8 bits: levels, then the facts of each group."""

    def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        x, count, out = arguments
        nearest = emit.get_or_insert_function(build.module, ir.FunctionType(FLOATS, [FLOATS]), f"llvm.rint.v{LANES}f32")
        magnitude, zero = ir.Constant(INTS, [0x7FFFFFFF] * LANES), FLOAT(0.0)
        with emit.for_range(build, build.sdiv(count, I64(GROUP))) as loop:
            start = build.mul(loop.index, I64(GROUP))
            at = build.add(x, build.mul(I64(4), start))
            numbers = [load(build, add(build, at, 4 * place), FLOAT) for place in range(0, GROUP, LANES)]
            largest = I32(0)  # magnitudes have the order of their bits, which vectors can compare
            for vector in numbers:
                most = _reduced(build, "smax", build.and_(build.bitcast(vector, INTS), magnitude))
                largest = build.select(build.icmp_signed(">", most, largest), most, largest)
            largest = build.bitcast(largest, FLOAT)
            scale = build.fmul(largest, FLOAT(np.float32(1) / np.float32(_LEVELS)))
            tiny = build.fcmp_ordered("<", scale, FLOAT(np.float32(1e-30)))
            inverse = build.select(tiny, zero, build.fdiv(FLOAT(1.0), scale))
            total = I32(0)
            for number, vector in enumerate(numbers):
                level = build.call(nearest, [build.fmul(vector, everywhere(build, inverse))])
                level = build.fptosi(level, INTS)
                total = build.add(total, _reduced(build, "add", level))
                narrow = build.trunc(level, ir.VectorType(I8, LANES))
                store(build, narrow, build.add(out, add(build, start, number * LANES)))
            fact = build.add(build.add(out, count), build.mul(I64(_FACTS), loop.index))
            scale = build.fadd(scale, build.fmul(largest, zero))  # NaN where anything is not finite
            off = build.mul(total, I32(-128))
            for place, value in enumerate((scale, off, build.fmul(scale, build.sitofp(total, FLOAT)))):
                store(build, value, add(build, fact, 4 * place))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), make


def _tile(bits: Integers, rows: int) -> Callable[..., None]:
    """Return an intrinsic: products of so many rounded rows with a panel.

    Its arguments: address of the panel, and its groups; address of the first row and bytes from one to the next;
    address of the result and numbers from a row to the next.
    """

    @lowered
    def tile(_: Any, panel: Any, groups: Any, x: Any, x_stride: Any, out: Any, out_stride: Any) -> Any:
        def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
            panel, groups, x, x_stride, out, out_stride = arguments
            kind = bits.kind
            of_x = [build.add(x, build.mul(I64(row), x_stride)) for row in range(rows)]
            sums = [[emit.alloca_once(build, FLOATS) for _ in range(VECTORS)] for _ in range(rows)]
            for one in (one for mine in sums for one in mine):
                build.store(ir.Constant(FLOATS, [0.0] * LANES), one)
            inputs = build.mul(groups, I64(GROUP))
            with emit.for_range(build, groups) as loop:
                at = build.add(add(build, panel, kind.header_bytes), build.mul(loop.index, I64(kind.group_bytes)))
                shared = bits.begin(build, at)
                first = add(build, at, kind.group_header_bytes)
                facts_at = [build.add(build.add(row, inputs), build.mul(loop.index, I64(_FACTS))) for row in of_x]
                dots = [[ir.Constant(INTS, [0] * LANES)] * VECTORS for _ in range(rows)]
                if bits.shifted:
                    dots = [
                        [everywhere(build, load(build, add(build, fact, 4), I32, 1))] * VECTORS for fact in facts_at
                    ]
                for line in range(0, kind.group_bytes, 64):
                    prefetch(build, add(build, at, AHEAD + line))
                for quad in range(0, GROUP, _QUAD):
                    levels = bits.read(build, add(build, first, quad * kind.input_bytes))
                    for row, address in enumerate(of_x):
                        here = build.add(address, build.mul(loop.index, I64(GROUP)))
                        four = load(build, add(build, here, quad), I32, 1)
                        mine = build.bitcast(everywhere(build, four), _BYTES)
                        dots[row] = [
                            bits.dot(build, dot, one, mine) for dot, one in zip(dots[row], levels, strict=True)
                        ]
                for mine, made, facts in zip(sums, dots, facts_at, strict=True):
                    known = [everywhere(build, load(build, add(build, facts, place), FLOAT, 1)) for place in (0, 8)]
                    before = [build.load(one) for one in mine]
                    for one, after in zip(mine, bits.add(build, before, made, known, shared), strict=True):
                        build.store(after, one)
            for row, mine in enumerate(sums):
                to = build.add(out, build.mul(I64(4 * row), out_stride))
                for vector, product in enumerate(bits.finish(build, panel, [build.load(one) for one in mine])):
                    store(build, product, add(build, to, 4 * LANES * vector))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), make

    return tile


def product_of(bits: Integers) -> Any:
    """Compile some columns of ``x @ weights.T``; arguments as of :func:`harness.decoding.kernels.panels.product_of`."""
    most, two, one = (_tile(bits, rows) for rows in (_MOST, 2, 1))
    header, group_bytes = bits.kind.header_bytes, bits.kind.group_bytes

    @cfunc(PRODUCT, nogil=True, error_model="numpy")
    def product(
        weights: int, inputs: int, start: int, end: int, x: int, stride: int, rows: int, out: int, out_stride: int,
        room: int,
    ) -> None:  # fmt: skip
        groups = inputs // GROUP
        record = inputs + _FACTS * groups
        together = max(1, 4 * ROOM // record)
        if together > _MOST:  # whole tiles
            together -= together % _MOST
        for first in range(0, rows, together):
            count = min(together, rows - first)
            for row in range(count):
                _round(x + (first + row) * stride, inputs, room + row * record)
            for column in range(start, end, COLUMNS):
                panel = weights + column // COLUMNS * (header + groups * group_bytes)
                to, row = out + 4 * (first * out_stride + column), 0
                while row + _MOST <= count:
                    most(panel, groups, room + row * record, record, to + 4 * row * out_stride, out_stride)
                    row += _MOST
                while row + 2 <= count:
                    two(panel, groups, room + row * record, record, to + 4 * row * out_stride, out_stride)
                    row += 2
                if row < count:
                    one(panel, groups, room + row * record, record, to + 4 * row * out_stride, out_stride)

    return product
