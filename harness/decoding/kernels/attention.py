"""Attention of a few tokens to what the cache holds, compiled: queries that read the same keys and values share them.

Those of a group of heads do, and those of several tokens of one row: a block of keys is read once for all of them. Each
query's sums have one order, whatever is beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from harness.decoding.kernels import COLUMNS
from harness.decoding.kernels.instructions import (
    FLOAT,
    I32,
    I64,
    compiled,
    emit,
    exponential,
    floats,
    lowered,
    reordered,
)
from harness.decoding.kernels.panels import FLOATS, LANES, add, everywhere, fused, load, loads, store

PADDED = 16
"""A query's scores are padded to a multiple: the widest vector."""

_SHARED = 3  # queries whose sums stand in registers while values are read


def _sums(build: Any, vectors: Sequence[Any]) -> Any:
    """Return a vector of the sums of as many vectors as it has lanes."""
    places = [[2 * lane + odd for lane in range(LANES)] for odd in (0, 1)]
    even, odd = (ir.Constant(ir.VectorType(I32, LANES), each) for each in places)
    while len(vectors) > 1:
        vectors = [
            build.fadd(build.shuffle_vector(one, other, even), build.shuffle_vector(one, other, odd))
            for one, other in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


@lowered
def score_keys(_: Any, keys: Any, dim: Any, length: Any, queries: Any, count: Any, out: Any, stride: Any) -> Any:
    """Put dot products of queries ``[count, dim]`` with keys ``[length, dim]`` into rows ``stride`` numbers apart.

    All by their addresses. Whole vectors are written: rows are padded.
    """

    def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        keys, dim, length, queries, count, out, stride = arguments
        row_bytes = build.mul(dim, I64(4))

        def block(first: Any, places: Sequence[Any]) -> None:
            of_keys = [build.add(keys, build.mul(place, row_bytes)) for place in places]
            with emit.for_range(build, count) as query:
                of_query = build.add(queries, build.mul(query.index, row_bytes))
                sums = [emit.alloca_once(build, FLOATS) for _ in range(LANES)]
                for one in sums:
                    build.store(ir.Constant(FLOATS, [0.0] * LANES), one)
                with emit.for_range(build, build.sdiv(dim, I64(LANES))) as part:
                    offset = build.mul(part.index, I64(4 * LANES))
                    numbers = load(build, build.add(of_query, offset), FLOAT)
                    for one, key in zip(sums, of_keys, strict=True):
                        product = fused(build, load(build, build.add(key, offset), FLOAT), numbers, build.load(one))
                        build.store(product, one)
                to = build.add(build.mul(query.index, stride), first)
                store(build, _sums(build, [build.load(one) for one in sums]), build.add(out, build.mul(to, I64(4))))

        whole = build.sdiv(length, I64(LANES))
        with emit.for_range(build, whole) as loop:
            first = build.mul(loop.index, I64(LANES))
            block(first, [build.add(first, I64(lane)) for lane in range(LANES)])
        first, end = build.mul(whole, I64(LANES)), build.sub(length, I64(1))
        with build.if_then(build.icmp_signed("<=", first, end)):
            places = [build.add(first, I64(lane)) for lane in range(LANES)]
            block(first, [build.select(build.icmp_signed("<", place, end), place, end) for place in places])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), make


@lowered
def mix_values(_: Any, values: Any, dim: Any, length: Any, weights: Any, stride: Any, count: Any, out: Any) -> Any:
    """Put sums of values ``[length, dim]``, in the weights of rows ``stride`` numbers apart, into ``[count, dim]``."""

    def make(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        values, dim, length, weights, stride, count, out = arguments

        def mix(queries: int, first: Any, columns: Any) -> None:
            """Of so many queries from a first one on, and a panel of columns."""
            numbers = [build.add(first, I64(query)) for query in range(queries)]
            of_weights = [build.add(weights, build.mul(build.mul(one, stride), I64(4))) for one in numbers]
            sums = [[emit.alloca_once(build, FLOATS) for _ in range(COLUMNS // LANES)] for _ in numbers]
            for one in (one for mine in sums for one in mine):
                build.store(ir.Constant(FLOATS, [0.0] * LANES), one)
            with emit.for_range(build, length) as place:
                at = build.add(build.mul(place.index, dim), columns)
                read = loads(build, build.add(values, build.mul(at, I64(4))), FLOAT, 4)
                for mine, weight in zip(sums, of_weights, strict=True):
                    number = load(build, build.add(weight, build.mul(place.index, I64(4))), FLOAT, 1)
                    for one, value in zip(mine, read, strict=True):
                        build.store(fused(build, value, everywhere(build, number), build.load(one)), one)
            for mine, one in zip(sums, numbers, strict=True):
                to = build.add(out, build.mul(build.add(build.mul(one, dim), columns), I64(4)))
                for offset, total in zip(range(0, 4 * COLUMNS, 4 * LANES), mine, strict=True):
                    store(build, build.load(total), add(build, to, offset))

        with emit.for_range(build, build.sdiv(dim, I64(COLUMNS))) as part:
            columns = build.mul(part.index, I64(COLUMNS))
            several = build.sdiv(count, I64(_SHARED))
            with emit.for_range(build, several) as group:
                mix(_SHARED, build.mul(group.index, I64(_SHARED)), columns)
            done = build.mul(several, I64(_SHARED))
            with emit.for_range(build, build.sub(count, done)) as left:
                mix(1, build.add(done, left.index), columns)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), make


@reordered
def softmax(scores: Any, length: int, longest: int) -> Any:
    """Put weights in place of scores, nothing behind a length, and return by what the weights are to be divided."""
    largest = scores[0]
    for place in range(length):
        largest = max(largest, scores[place])
    for place in range(length):
        scores[place] = exponential(scores[place] - largest)
    total = np.float32(0.0)
    for place in range(length):
        total += scores[place]
    for place in range(length, longest):
        scores[place] = np.float32(0.0)
    return total


@compiled
def attend_together(
    keys: int, values: int, dim: int, queries: int, lengths: Any, count: int, room: int, out: int
) -> None:
    """Attend with so many queries ``[count, dim]`` to as much of the same keys and values as each may see.

    ``room`` is for padded scores; ``out`` ``[count, dim]`` for results.
    """
    longest = 0
    for query in range(count):
        longest = max(longest, lengths[query])
    stride = (longest + PADDED - 1) // PADDED * PADDED
    score_keys(keys, dim, longest, queries, count, room, stride)
    totals = floats(room + 4 * count * stride, count)
    for query in range(count):
        totals[query] = softmax(floats(room + 4 * query * stride, longest), lengths[query], longest)
    mix_values(values, dim, longest, room, stride, count, out)
    for query in range(count):
        scale, row = np.float32(1.0) / totals[query], floats(out + 4 * query * dim, dim)
        for part in range(dim):
            row[part] *= scale
