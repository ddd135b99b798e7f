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
from numba import carray, cfunc, types  # type: ignore[attr-defined]

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
    floats,
    lowered,
    pointer,
    prefetch,
    reordered,
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
_FACTS = 12  # bytes of a group of activations: scale, sum of levels, and that sum scaled


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
        """Return a row's sums with a group's added, given its facts: scale, sum of levels, and that scaled."""

    def finish(self, build: Any, panel: Any, sums: Sequence[Any]) -> Sequence[Any]:
        """Return products from sums."""
        return sums


class W8A8(Integers):
    """A float32 scale for each output, then whole numbers of 8 bits, with 128 added."""

    kind = kernels.W8A8

    def read(self, build: Any, at: Any) -> Sequence[Any]:
        """Load them."""
        return [load(build, add(build, at, _QUAD * LANES * vector), I8, _QUAD * LANES) for vector in range(VECTORS)]

    def dot(self, build: Any, plus: Any, levels: Any, activations: Any) -> Any:
        """Where a pair's sum would not fit, take the 128 off first."""
        if _DOTS or not _PAIRS:
            return _dot(build, plus, levels, activations)
        signed = build.xor(levels, ir.Constant(_BYTES, [128] * _QUAD * LANES))
        return _dot(build, plus, *_signs(build, signed, activations))

    def add(self, build: Any, sums: Sequence[Any], dots: Sequence[Any], facts: Sequence[Any], shared: Any) -> list[Any]:
        """Take off what the 128 have added."""
        scale, of_levels, _ = facts
        more = build.mul(of_levels, ir.Constant(INTS, [128 if _DOTS or not _PAIRS else 0] * LANES))
        return [
            fused(build, build.sitofp(build.sub(dot, more), FLOATS), scale, one)
            for one, dot in zip(sums, dots, strict=True)
        ]

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
        scale, _, total = facts
        made = []
        for one, dot, size, least in zip(sums, dots, shared[:VECTORS], shared[VECTORS:], strict=True):
            plus = fused(build, least, total, one)
            made.append(fused(build, build.sitofp(dot, FLOATS), build.fmul(scale, size), plus))
        return made


@reordered
def _round(x: int, count: int, out: int) -> None:
    """Round a row of so many numbers to 8 bits: levels, then the facts of each group."""
    numbers, levels = floats(x, count), carray(pointer(out), count, np.int8)
    facts = floats(out + count, 3 * (count // GROUP))
    sums = carray(pointer(out + count), 3 * (count // GROUP), np.int32)
    for group in range(count // GROUP):
        start = group * GROUP
        largest, rest = np.float32(0.0), np.float32(0.0)
        for place in range(start, start + GROUP):
            largest = max(largest, abs(numbers[place]))
            rest += numbers[place] * np.float32(0.0)
        scale = largest / np.float32(_LEVELS)
        inverse = np.float32(0.0) if scale < np.float32(1e-30) else np.float32(1.0) / scale
        total = np.int32(0)
        for place in range(start, start + GROUP):
            level = np.int32(np.rint(numbers[place] * inverse))
            levels[place] = np.int8(level)
            total += level
        facts[3 * group] = scale + rest
        sums[3 * group + 1] = total
        facts[3 * group + 2] = scale * np.float32(total) + rest


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
                dots = [[ir.Constant(INTS, [0] * LANES)] * VECTORS for _ in range(rows)]
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
                for row, address in enumerate(of_x):
                    here = build.add(build.add(address, inputs), build.mul(loop.index, I64(_FACTS)))
                    facts = [
                        everywhere(build, load(build, add(build, here, 4 * place), kind_of, 1))
                        for place, kind_of in enumerate((FLOAT, I32, FLOAT))
                    ]
                    before = [build.load(one) for one in sums[row]]
                    for one, after in zip(sums[row], bits.add(build, before, dots[row], facts, shared), strict=True):
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
