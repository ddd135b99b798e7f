"""A layer over a few tokens, compiled: norms, rotation, attention and activations between the products.

Every token's arithmetic is its own, in an order that nothing beside it changes. What a call computes with stands in one
array of whole numbers, sizes and addresses; so does what a layer has.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from harness.contracts.strategies import TINY
from harness.decoding.kernels import QUERIES, ROOM
from harness.decoding.kernels.attention import attend_together
from harness.decoding.kernels.instructions import (
    c_function,
    compiled,
    dots,
    exponential,
    float_of_bits,
    floats,
    multiply,
    pointer,
    reordered,
    share,
    wait,
    which,
)
from harness.decoding.kernels.tables import (
    ACTIVATION,
    ASKED,
    ASKED_COLUMNS,
    ASKED_END,
    ASKED_KEPT,
    ASKED_LEFT,
    ASKED_MADE,
    ASKED_SCORES,
    ASKED_SLOT,
    ASKED_SUMS,
    ASKED_TESTS,
    ASKED_THRESHOLD,
    ASKING,
    ATTENTION_NORM,
    BARRIER,
    CHECK_ACTIVATIONS,
    COS,
    COUNT,
    ENTRIES,
    ERF,
    FIELDS,
    FILLS,
    FIRST,
    GATED,
    HEAD_DIM,
    HEAD_STRIDE,
    HEADS,
    HIDDEN,
    INNER,
    INPUTS,
    KEY_NORM,
    KV_HEADS,
    LAST,
    LATER_BIAS,
    LATER_COLUMNS,
    LATER_OUTPUTS,
    LATER_WEIGHT,
    LAYER_NORM,
    LAYER_STRIDE,
    LEFT,
    MEMBER,
    MLP_IN,
    MLP_NORM,
    MLP_OUT,
    NO_NORM,
    OUT,
    OUT_STRIDE,
    OUTPUT,
    OUTPUTS,
    OWN,
    OWN_SIZE,
    PARALLEL,
    POSITIONS,
    PRODUCT,
    PRODUCT_FIELDS,
    QKV,
    QUERY_NORM,
    RELU,
    ROOM_AT,
    ROWS,
    SCALE,
    SIN,
    SIZE,
    SLOTS,
    STATE,
    STRIDE,
    TABLE,
    TABLE_COLUMNS,
    TANH,
    TEAM_MEMBER,
    TEAM_SIZE,
    TEST_ACTIVATION,
    TEST_AT,
    TEST_BIAS,
    TEST_CHANGE,
    TEST_COLUMNS,
    TEST_COUNT,
    TEST_DEPTH,
    TEST_LATER,
    TEST_NORMALISE,
    TEST_OFFSETS,
    TEST_WEIGHT,
    TURNING,
    WEIGHTS,
    WORK,
    X,
)


@reordered
def normalise(x: Any, out: Any, count: int, norm: Any) -> None:
    """``norm``: which it is, addresses of gain and bias, ε's bits. ``out`` may be ``x``."""
    mean = np.float32(0.0)
    if norm[0] == LAYER_NORM:
        for place in range(count):
            mean += x[place]
        mean /= np.float32(count)
    squares = np.float32(0.0)
    for place in range(count):
        squares += (x[place] - mean) * (x[place] - mean)
    epsilon = float_of_bits(np.int32(norm[3]))
    scale = np.float32(1.0) / np.sqrt(squares / np.float32(count) + epsilon)
    for place in range(count):
        out[place] = (x[place] - mean) * scale
    if norm[1] != 0:
        gain = floats(norm[1], count)
        for place in range(count):
            out[place] *= gain[place]
    if norm[2] != 0:
        bias = floats(norm[2], count)
        for place in range(count):
            out[place] += bias[place]


@reordered
def activate(kind: int, x: Any, count: int) -> None:
    """Apply a non-linearity in place."""
    if kind == RELU:
        for place in range(count):
            x[place] = x[place] if not x[place] < 0 else np.float32(0.0)
    elif kind == ERF:
        for place in range(count):
            x[place] *= np.float32(0.5) * (np.float32(1.0) + math.erf(x[place] * np.float32(math.sqrt(0.5))))
    else:  # x · σ(z), and ½ (1 + tanh y) = σ(2y)
        for place in range(count):
            value = x[place]
            z = value
            if kind == TANH:
                cube = value * value * value
                z = np.float32(2 * math.sqrt(2 / math.pi)) * (value + np.float32(0.044715) * cube)
            small = exponential(-abs(z))
            x[place] = value * (np.float32(1.0) if z >= 0 else small) / (np.float32(1.0) + small)


@reordered
def rotate(x: Any, out: Any, dim: int, turning: int, cos: Any, sin: Any) -> None:
    """Turn the first dimensions of a head, halves paired; the sines of the first half are negative."""
    half = turning // 2
    for place in range(half):
        one, other = x[place], x[place + half]
        out[place] = one * cos[place] + other * sin[place]
        out[place + half] = other * cos[place + half] + one * sin[place + half]
    for place in range(turning, dim):
        out[place] = x[place]


@reordered
def normalise_all(x: Any, out: Any, slots: int, count: int, norm: Any) -> None:
    """Normalise every slot's row."""
    for slot in range(slots):
        part = slice(slot * count, (slot + 1) * count)
        normalise(x[part], out[part], count, norm)


@reordered
def turn(given: Any, x: Any, out: Any, position: int, norm: Any) -> None:
    """Normalise a head in place where the model does, and rotate it."""
    dim, turning = given[HEAD_DIM], given[TURNING]
    if norm[0] != NO_NORM:
        normalise(x, x, dim, norm)
    cos = floats(given[COS] + 4 * position * turning, turning)
    sin = floats(given[SIN] + 4 * position * turning, turning)
    rotate(x, out, dim, turning, cos, sin)


@compiled
def keep(given: Any, table: Any, entries: int, qkv: Any, rows: Any, positions: Any, start: int, end: int) -> None:
    """Put keys and values into the cache; a unit is a key/value head of a slot."""
    heads, kv_heads, dim = given[HEADS], given[KV_HEADS], given[HEAD_DIM]
    for unit in range(start, end):
        slot, head = unit // kv_heads, unit % kv_heads
        key = (slot * (heads + 2 * kv_heads) + heads + head) * dim
        value = key + kv_heads * dim
        at = entries + 4 * (rows[slot] + head * given[HEAD_STRIDE] + positions[slot] * dim)
        kept_key, kept_value = floats(at, dim), floats(at + 4 * kv_heads * given[HEAD_STRIDE], dim)
        turn(given, qkv[key : key + dim], kept_key, positions[slot], table[KEY_NORM:])
        for part in range(dim):
            kept_value[part] = qkv[value + part]


@compiled
def attend(
    given: Any, table: Any, entries: int, qkv: Any, rows: Any, positions: Any, attended: Any, own: int, start: int,
    end: int,
) -> None:  # fmt: skip
    """Attend to all up to a slot's position; a unit is a query head of a slot, those of one key head side by side."""
    heads, kv_heads, dim, slots = given[HEADS], given[KV_HEADS], given[HEAD_DIM], given[SLOTS]
    group, scale = heads // kv_heads, float_of_bits(np.int32(table[SCALE]))
    results, room = own + 4 * QUERIES * dim, own + 8 * QUERIES * dim
    lengths, places = carray(pointer(room), QUERIES, np.int64), carray(pointer(room + 8 * QUERIES), QUERIES, np.int64)
    unit = start
    while unit < end:
        head, row, count = unit // (slots * group), rows[unit % (slots * group) // group], 0
        while unit < end and count < QUERIES and unit // (slots * group) == head:
            slot = unit % (slots * group) // group
            if rows[slot] != row:
                break
            mine = head * group + unit % group
            place, query = (slot * (heads + 2 * kv_heads) + mine) * dim, floats(own + 4 * count * dim, dim)
            turn(given, qkv[place : place + dim], query, positions[slot], table[QUERY_NORM:])
            for part in range(dim):
                query[part] *= scale
            lengths[count], places[count] = positions[slot] + 1, (slot * heads + mine) * dim
            count, unit = count + 1, unit + 1
        keys = entries + 4 * (row + head * given[HEAD_STRIDE])
        values = keys + 4 * kv_heads * given[HEAD_STRIDE]
        attend_together(keys, values, dim, own, lengths, count, room + 16 * QUERIES, results)
        for query in range(count):
            result = floats(results + 4 * query * dim, dim)
            for part in range(dim):
                attended[places[query] + part] = result[part]


@compiled
def add_to(state: Any, sums: Any, slots: int, hidden: int, first: int, last: int) -> None:
    """Add columns of every slot's row."""
    for slot in range(slots):
        for part in range(slot * hidden + first, slot * hidden + last):
            state[part] += sums[part]


@compiled
def let_through(kind: int, gated: int, inner: Any, up: Any, slots: int, width: int, first: int, last: int) -> None:
    """Apply the non-linearity to columns of every slot's row, and multiply with what the gate lets through."""
    for slot in range(slots):
        start, end = slot * width + first, slot * width + last
        activate(kind, inner[start:end], end - start)
        if gated:
            for place in range(start, end):
                inner[place] *= up[place]


# ------------------------------------------------------------- checks between layers, so that a token goes no further

_RELU = CHECK_ACTIVATIONS["relu"]
_FLAT = 44.0  # from where on 1 - tanh is none in float32


@reordered
def _inverse(squares: Any, hidden: int) -> Any:
    """Return one over the root of a mean square; NaN where that is no finite number."""
    square = squares / np.float32(hidden) + np.float32(TINY)
    return np.float32(1.0) / np.sqrt(square) if square < np.float32(np.inf) else np.float32(np.nan)


@reordered
def _activate(kind: int, x: Any, count: int) -> None:
    for place in range(count):
        value = x[place]
        if kind == _RELU:
            x[place] = value if not value < 0 else np.float32(0.0)
        else:
            small = exponential(np.float32(-2.0) * (np.float32(_FLAT) if abs(value) > _FLAT else abs(value)))
            size = (np.float32(1.0) - small) / (np.float32(1.0) + small)
            x[place] = size if value >= 0 else -size


@reordered
def _greatest(outputs: Any, offsets: Any, count: int) -> Any:
    """Return the greatest of log softmax(outputs) + offsets."""
    largest, found, total = outputs[0], outputs[0] + offsets[0], np.float32(0.0)
    for place in range(1, count):
        largest, found = max(largest, outputs[place]), max(found, outputs[place] + offsets[place])
    for place in range(count):
        total += exponential(outputs[place] - largest)
    return found - (largest + np.log(total))


@reordered
def score(  # noqa: PLR0912
    test: Any, back: bool, state: int, kept: int, hidden: int, sums_at: int, own: int, barrier: int, members: int,
    member: int,
) -> Any:  # fmt: skip
    """Return a state's score, the same on every thread, and keep the state for the check that comes next.

    Args:
        test: of a check.
        back: whether there is a state at the exit point before.
        state: address of a token's.
        kept: address of room for it, right behind the one before.
        hidden: numbers in each.
        sums_at: address of room for the first layer's outputs, shared by the threads.
        own: address of room for twice as many, of this thread.
        barrier: of the team.
        members: how many threads it has.
        member: which of them this is.
    """
    x, sums, count = floats(state, hidden), floats(sums_at, test[TEST_COUNT]), test[TEST_COUNT]
    squares, others, dot = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for place in range(hidden):
        squares += x[place] * x[place]
    scale = _inverse(squares, hidden)
    size, cosine, growth = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    if test[TEST_CHANGE] != 0:
        size = -np.log(scale)
        if back:
            y = floats(kept - 4 * hidden, hidden)
            for place in range(hidden):
                others += y[place] * y[place]
                dot += x[place] * y[place]
            before = _inverse(others, hidden)
            cosine = dot / np.float32(hidden) * scale * before
            growth = np.log(before) + size
    first, last = share(count, member, members)
    if test[TEST_WEIGHT] != 0:
        dots(test[TEST_WEIGHT], hidden, first, last, state, sums_at)
        if test[TEST_NORMALISE] != 0:
            for row in range(first, last):
                sums[row] *= scale
    else:
        for row in range(first, last):
            sums[row] = np.float32(0.0)
    bias = floats(test[TEST_BIAS], count)
    for row in range(first, last):
        sums[row] += bias[row]
    if test[TEST_CHANGE] != 0:
        change = floats(test[TEST_CHANGE], 3 * count)
        for row in range(first, last):
            sums[row] += change[row] * size + change[count + row] * cosine + change[2 * count + row] * growth
    wait(barrier, members)
    first, last = share(hidden, member, members)
    here = floats(kept, hidden)
    for place in range(first, last):
        here[place] = x[place]
    inner, outer = floats(own, count), floats(own + 4 * count, count)
    for row in range(count):
        inner[row] = sums[row]
    width = count
    for depth in range(test[TEST_DEPTH]):
        later = carray(pointer(test[TEST_LATER] + 8 * LATER_COLUMNS * depth), LATER_COLUMNS, np.int64)
        outputs = later[LATER_OUTPUTS]
        weight, bias = floats(later[LATER_WEIGHT], outputs * width), floats(later[LATER_BIAS], outputs)
        _activate(test[TEST_ACTIVATION], inner, width)
        for row in range(outputs):
            total = bias[row]
            for place in range(width):
                total += weight[row * width + place] * inner[place]
            outer[row] = total
        for row in range(outputs):
            inner[row] = outer[row]
        width = outputs
    return inner[0] if test[TEST_OFFSETS] == 0 else _greatest(inner, floats(test[TEST_OFFSETS], width), width)


@compiled
def check(given: Any, after: int, own: int, members: int, member: int) -> int:
    """Make the checks that are due after so many layers; return that number if one reached its threshold, else 0."""
    left, hidden = 0, given[HIDDEN]
    for place in range(given[ASKED]):
        one = carray(pointer(given[ASKING] + 8 * ASKED_COLUMNS * place), ASKED_COLUMNS, np.int64)
        made = one[ASKED_MADE]
        if made == one[ASKED_END]:
            continue
        test = carray(pointer(one[ASKED_TESTS] + 8 * TEST_COLUMNS * made), TEST_COLUMNS, np.int64)
        if test[TEST_AT] != after:
            continue
        found = score(
            test, made > 0, given[STATE] + 4 * hidden * one[ASKED_SLOT], one[ASKED_KEPT] + 4 * hidden * made, hidden,
            one[ASKED_SUMS], own, given[BARRIER], members, member,
        )  # fmt: skip
        reached = found >= float_of_bits(np.int32(one[ASKED_THRESHOLD]))
        if reached:
            left = after
        if member == 0:  # the others have read how many were made: they wait for each other while they score
            floats(one[ASKED_SCORES], one[ASKED_END])[made] = found
            one[ASKED_MADE], one[ASKED_LEFT] = made + 1, after if reached else 0
    return left


@compiled
def product(matrix: Any, x: int, width: int, rows: int, out: int, stride: int, start: int, end: int, room: int) -> None:
    """Multiply rows with some columns of a matrix and add its bias; ``matrix`` is a layer's entry of it."""
    multiply(matrix[1], (matrix[0], width, start, end, x, 4 * width, rows, out, stride, room))
    if matrix[2] != 0:
        for row in range(rows):
            numbers = floats(out + 4 * (row * stride + start), end - start)
            bias = floats(matrix[2] + 4 * start, end - start)
            for place in range(end - start):
                numbers[place] += bias[place]


@cache
def layers() -> Any:  # noqa: PLR0915  # half of it says what stands where
    """Compile layers, which takes some seconds."""

    @c_function
    def run(data: Any) -> None:  # noqa: PLR0915
        given = carray(data, FIELDS, np.int64)
        members, member = which(given[SIZE], given[MEMBER])
        slots, hidden, inner = given[SLOTS], given[HIDDEN], given[INNER]
        heads, kv_heads, dim = given[HEADS], given[KV_HEADS], given[HEAD_DIM]
        fused, wide = (heads + 2 * kv_heads) * dim, heads * dim
        # What the threads share, and what each has for itself.
        at_fused = given[WORK]
        at_attended = at_fused + 4 * slots * fused
        at_inner = at_attended + 4 * slots * wide
        at_up = at_inner + 4 * slots * inner
        at_sums = at_up + 4 * slots * inner
        at_normed = given[OWN] + 4 * given[OWN_SIZE] * member
        at_second = at_normed + 4 * slots * hidden
        own = at_second + 4 * slots * hidden
        state, sums = floats(given[STATE], slots * hidden), floats(at_sums, slots * hidden)
        normed, second = floats(at_normed, slots * hidden), floats(at_second, slots * hidden)
        qkv, attended = floats(at_fused, slots * fused), floats(at_attended, slots * wide)
        up, middle = floats(at_up, slots * inner), floats(at_inner, slots * inner)
        rows = carray(pointer(given[ROWS]), slots, np.int64)
        positions = carray(pointer(given[POSITIONS]), slots, np.int64)
        first, last = share(hidden, member, members)  # this thread's columns of the state
        inner_first, inner_last = share(inner, member, members)
        skipped = wide if given[FILLS] else 0  # queries, which nobody asks where only keys and values are filled in
        fused_first, fused_last = share(fused - skipped, member, members)
        fused_first, fused_last = fused_first + skipped, fused_last + skipped
        left = 0
        for layer in range(given[FIRST], given[LAST]):
            table = carray(pointer(given[TABLE] + 8 * TABLE_COLUMNS * layer), TABLE_COLUMNS, np.int64)
            entries = given[ENTRIES] + 4 * layer * given[LAYER_STRIDE]
            normalise_all(state, normed, slots, hidden, table[ATTENTION_NORM:])
            if given[PARALLEL]:
                normalise_all(state, second, slots, hidden, table[MLP_NORM:])
            product(table[QKV:], at_normed, hidden, slots, at_fused, fused, fused_first, fused_last, own)
            wait(given[BARRIER], members)
            start, end = slots * heads * member // members, slots * heads * (member + 1) // members
            if slots == 1 and not given[FILLS]:  # a thread keeps the heads that it reads, one of them perhaps twice
                group = heads // kv_heads
                keep(given, table, entries, qkv, rows, positions, start // group, (end + group - 1) // group)
            else:
                shared = slots * kv_heads
                keep(
                    given, table, entries, qkv, rows, positions, shared * member // members,
                    shared * (member + 1) // members,
                )  # fmt: skip
                wait(given[BARRIER], members)
            if given[FILLS]:
                continue
            attend(given, table, entries, qkv, rows, positions, attended, own, start, end)
            wait(given[BARRIER], members)
            product(table[OUTPUT:], at_attended, wide, slots, at_sums, hidden, first, last, own)
            add_to(state, sums, slots, hidden, first, last)
            wait(given[BARRIER], members)
            if not given[PARALLEL]:
                normalise_all(state, second, slots, hidden, table[MLP_NORM:])
            product(table[MLP_IN:], at_second, hidden, slots, at_inner, inner, inner_first, inner_last, own)
            if given[GATED]:  # the gate's rows, then those of what it lets through
                product(
                    table[MLP_IN:], at_second, hidden, slots, at_up - 4 * inner, inner, inner + inner_first,
                    inner + inner_last, own,
                )  # fmt: skip
            let_through(given[ACTIVATION], given[GATED], middle, up, slots, inner, inner_first, inner_last)
            wait(given[BARRIER], members)
            product(table[MLP_OUT:], at_inner, inner, slots, at_sums, hidden, first, last, own)
            add_to(state, sums, slots, hidden, first, last)
            wait(given[BARRIER], members)
            left = check(given, layer + 1, own, members, member)
            if left:
                break
        if member == 0:
            given[LEFT] = left

    return run


@cache
def threads() -> Any:
    """Compile what shares the columns of a product among threads."""

    @c_function
    def run(data: Any) -> None:
        given = carray(data, PRODUCT_FIELDS, np.int64)
        members, member = which(given[TEAM_SIZE], given[TEAM_MEMBER])
        start, end = share(given[OUTPUTS], member, members)
        multiply(
            given[PRODUCT],
            (
                given[WEIGHTS], given[INPUTS], start, end, given[X], given[STRIDE], given[COUNT], given[OUT],
                given[OUT_STRIDE], given[ROOM_AT] + 4 * ROOM * member,
            ),
        )  # fmt: skip

    return run
