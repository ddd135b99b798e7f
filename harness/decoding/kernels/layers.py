"""Whole layers for a few tokens in one call, compiled.

A token passes all layers up to the next exit without coming back to Python: norms, rotation, attention and activations
run on the threads that multiply, between barriers. Every token's arithmetic is its own, so that a token has the same
bits alone, in a batch, and among tokens that are verified together.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numba import carray, cfunc, njit, types
from torch import Tensor

from harness.decoding.blocks import LayerNorm, RMSNorm
from harness.decoding.kernels.lanes import (
    COLUMNS,
    COMPILED,
    STEP,
    Bits,
    Float32,
    call,
    fetch,
    float_of_bits,
    one_row_of,
    pointer,
    product_of,
    share,
)
from harness.decoding.kernels.matrix import CompiledLinear
from harness.decoding.kernels.team import team

if TYPE_CHECKING:
    from harness.decoding.blocks import Block, Norm, Rotary
    from harness.decoding.cache import KVCache

__all__ = ["CompiledLayers", "Slots"]

_ORDER = COMPILED | {"fastmath": {"reassoc", "contract", "nsz", "arcp"}}
"""What is not finite stays so."""

_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu,
    F.silu,
    lambda x: F.gelu(x, approximate="tanh"),
    F.gelu,
)
_RELU, _SILU, _TANH, _ERF = range(4)

# Of a call: what the model is, what the cache is, what differs from call to call.
(
    _HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _INNER, _TURNING, _GATED, _PARALLEL, _ACTIVATION, _TABLE,
    _COS, _SIN, _ENTRIES, _LAYER_STRIDE, _HEAD_STRIDE, _ROWS, _POSITIONS, _SLOTS, _WORK, _OWN, _OWN_SIZE,
    _SIZE, _MEMBER, _BARRIER, _STATE, _FIRST, _LAST, _FIELDS,
) = range(28)  # fmt: skip
_Parameters = ctypes.c_int64 * _FIELDS

# Of a layer: address, stride and bias of each matrix; kind, gain, bias and ε of each norm; the scale of scores.
_QKV, _OUTPUT, _MLP_IN, _MLP_OUT = range(0, 12, 3)
_ATTENTION_NORM, _MLP_NORM, _QUERY_NORM, _KEY_NORM = range(12, 28, 4)
_SCALE, _COLUMNS = 28, 29
_AHEAD = 8  # positions whose values are asked for before they are read
_NO_NORM, _RMS_NORM, _LAYER_NORM = range(3)


@njit(**COMPILED)  # type: ignore[untyped-decorator]
def floats(address: int, count: int) -> Any:
    """Return numbers at an address."""
    return carray(pointer(address), count, np.float32)


@njit(**_ORDER)  # type: ignore[untyped-decorator]
def exponential(x: Any) -> Any:
    """e to a number that is at most 0, with the error of float32: Cody and Waite's reduction, as in Cephes."""
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


@njit(**_ORDER)  # type: ignore[untyped-decorator]
def normalise(x: Any, out: Any, count: int, norm: Any) -> None:
    """``norm``: which it is, addresses of gain and bias, ε's bits. ``out`` may be ``x``."""
    mean = np.float32(0.0)
    if norm[0] == _LAYER_NORM:
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


@njit(**_ORDER)  # type: ignore[untyped-decorator]
def activate(kind: int, x: Any, count: int) -> None:
    """Apply a non-linearity in place."""
    if kind == _RELU:
        for place in range(count):
            x[place] = x[place] if not x[place] < 0 else np.float32(0.0)
    elif kind == _ERF:
        for place in range(count):
            x[place] *= np.float32(0.5) * (np.float32(1.0) + math.erf(x[place] * np.float32(math.sqrt(0.5))))
    else:  # x · σ(z), and ½ (1 + tanh y) = σ(2y)
        for place in range(count):
            value = x[place]
            z = value
            if kind == _TANH:
                cube = value * value * value
                z = np.float32(2 * math.sqrt(2 / math.pi)) * (value + np.float32(0.044715) * cube)
            small = exponential(-abs(z))
            x[place] = value * (np.float32(1.0) if z >= 0 else small) / (np.float32(1.0) + small)


@njit(**_ORDER)  # type: ignore[untyped-decorator]
def rotate(x: Any, out: Any, dim: int, turning: int, cos: Any, sin: Any) -> None:
    """Turn the first dimensions of a head, halves paired; the sines of the first half are negative."""
    half = turning // 2
    for place in range(half):
        one, other = x[place], x[place + half]
        out[place] = one * cos[place] + other * sin[place]
        out[place + half] = other * cos[place + half] + one * sin[place + half]
    for place in range(turning, dim):
        out[place] = x[place]


@njit(**_ORDER)  # type: ignore[untyped-decorator]
def normalise_all(x: Any, out: Any, slots: int, count: int, norm: Any) -> None:
    """Normalise every slot's row."""
    for slot in range(slots):
        part = slice(slot * count, (slot + 1) * count)
        normalise(x[part], out[part], count, norm)


@njit(**_ORDER)  # type: ignore[untyped-decorator]
def turn(given: Any, x: Any, out: Any, position: int, norm: Any) -> None:
    """Normalise a head in place where the model does, and rotate it."""
    dim, turning = given[_HEAD_DIM], given[_TURNING]
    if norm[0] != _NO_NORM:
        normalise(x, x, dim, norm)
    cos = floats(given[_COS] + 4 * position * turning, turning)
    sin = floats(given[_SIN] + 4 * position * turning, turning)
    rotate(x, out, dim, turning, cos, sin)


@njit(**_ORDER)  # type: ignore[untyped-decorator]
def weigh(at: int, scores: Any, out: Any, length: int, dim: int) -> None:
    """Softmax of scores, in place, and the mean in these weights of the values at an address."""
    values = floats(at, length * dim)
    largest = scores[0]
    for place in range(length):
        largest = max(largest, scores[place])
    for place in range(length):
        scores[place] = exponential(scores[place] - largest)
    total = np.float32(0.0)
    for place in range(length):
        total += scores[place]
    for part in range(dim):
        out[part] = np.float32(0.0)
    for place in range(length):
        weight, value = scores[place], values[place * dim : (place + 1) * dim]
        for line in range(0, 4 * dim, 64):
            fetch(at + 4 * (place + _AHEAD) * dim + line)
        for part in range(dim):
            out[part] += weight * value[part]
    scale = np.float32(1.0) / total
    for part in range(dim):
        out[part] *= scale


@cache
def _body(bits: type[Bits]) -> int:
    """Return the address of the compiled layers of a kind of weights; takes some seconds, once in a process."""
    stored, scores_of = product_of(bits()), one_row_of(Float32())

    @njit(**COMPILED)  # type: ignore[untyped-decorator]
    def multiply(
        matrix: Any, x: int, width: int, rows: int, out: int, stride: int, start: int, end: int, room: int
    ) -> None:
        stored(matrix[0], matrix[1], start, end, x, 4 * width, rows, width, out, stride, room)
        if matrix[2] != 0:
            for row in range(rows):
                numbers = floats(out + 4 * (row * stride + start), end - start)
                bias = floats(matrix[2] + 4 * start, end - start)
                for place in range(end - start):
                    numbers[place] += bias[place]

    @njit(**COMPILED)  # type: ignore[untyped-decorator]
    def keep(given: Any, table: Any, entries: int, qkv: Any, rows: Any, positions: Any, start: int, end: int) -> None:
        """Put keys and values into the cache; a unit is a key/value head of a slot."""
        heads, kv_heads, dim = given[_HEADS], given[_KV_HEADS], given[_HEAD_DIM]
        for unit in range(start, end):
            slot, head = unit // kv_heads, unit % kv_heads
            key = (slot * (heads + 2 * kv_heads) + heads + head) * dim
            value = key + kv_heads * dim
            at = entries + 4 * (rows[slot] + head * given[_HEAD_STRIDE] + positions[slot] * dim)
            kept_key, kept_value = floats(at, dim), floats(at + 4 * kv_heads * given[_HEAD_STRIDE], dim)
            turn(given, qkv[key : key + dim], kept_key, positions[slot], table[_KEY_NORM:])
            for part in range(dim):
                kept_value[part] = qkv[value + part]

    @njit(**COMPILED)  # type: ignore[untyped-decorator]
    def attend(
        given: Any, table: Any, entries: int, qkv: Any, rows: Any, positions: Any, attended: Any, own: int, start: int,
        end: int,
    ) -> None:  # fmt: skip
        """Attend to everything up to a slot's position; a unit is a query head of a slot."""
        heads, kv_heads, dim = given[_HEADS], given[_KV_HEADS], given[_HEAD_DIM]
        query, scale = floats(own, dim), float_of_bits(np.int32(table[_SCALE]))
        for unit in range(start, end):
            slot, head = unit // heads, unit % heads
            place, length = (slot * (heads + 2 * kv_heads) + head) * dim, positions[slot] + 1
            turn(given, qkv[place : place + dim], query, positions[slot], table[_QUERY_NORM:])
            for part in range(dim):
                query[part] *= scale
            keys = entries + 4 * (rows[slot] + head // (heads // kv_heads) * given[_HEAD_STRIDE])
            scores_of(keys, 4 * dim, 0, length, own, dim, own + 4 * dim)
            values, place = keys + 4 * kv_heads * given[_HEAD_STRIDE], unit * dim
            weigh(values, floats(own + 4 * dim, length), attended[place : place + dim], length, dim)

    @cfunc(types.void(types.voidptr), nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def run(data: Any) -> None:
        given = carray(data, _FIELDS, np.int64)
        members, member = np.int64(1), np.int64(0)
        if given[_SIZE] != 0:
            members, member = call(given[_SIZE]), call(given[_MEMBER])
        slots, hidden, inner = given[_SLOTS], given[_HIDDEN], given[_INNER]
        heads, kv_heads, dim = given[_HEADS], given[_KV_HEADS], given[_HEAD_DIM]
        fused, wide = (heads + 2 * kv_heads) * dim, heads * dim
        # What the threads share, and what each has for itself.
        at_fused = given[_WORK]
        at_attended = at_fused + 4 * slots * fused
        at_inner = at_attended + 4 * slots * wide
        at_up = at_inner + 4 * slots * inner
        at_sums = at_up + 4 * slots * inner
        at_normed = given[_OWN] + 4 * given[_OWN_SIZE] * member
        at_second = at_normed + 4 * slots * hidden
        own = at_second + 4 * slots * hidden
        state, sums = floats(given[_STATE], slots * hidden), floats(at_sums, slots * hidden)
        normed, second = floats(at_normed, slots * hidden), floats(at_second, slots * hidden)
        qkv, attended = floats(at_fused, slots * fused), floats(at_attended, slots * wide)
        up, middle = floats(at_up, slots * inner), floats(at_inner, slots * inner)
        rows = carray(pointer(given[_ROWS]), slots, np.int64)
        positions = carray(pointer(given[_POSITIONS]), slots, np.int64)
        first, last = share(hidden, member, members)  # this thread's columns of the state
        inner_first, inner_last = share(inner, member, members)
        fused_first, fused_last = share(fused, member, members)
        for layer in range(given[_FIRST], given[_LAST]):
            table = carray(pointer(given[_TABLE] + 8 * _COLUMNS * layer), _COLUMNS, np.int64)
            entries = given[_ENTRIES] + 4 * layer * given[_LAYER_STRIDE]
            normalise_all(state, normed, slots, hidden, table[_ATTENTION_NORM:])
            if given[_PARALLEL]:
                normalise_all(state, second, slots, hidden, table[_MLP_NORM:])
            multiply(table[_QKV:], at_normed, hidden, slots, at_fused, fused, fused_first, fused_last, own)
            if members > 1:
                call(given[_BARRIER])
            units = slots * kv_heads
            keep(
                given, table, entries, qkv, rows, positions, units * member // members, units * (member + 1) // members
            )
            if members > 1:
                call(given[_BARRIER])
            units = slots * heads
            attend(
                given, table, entries, qkv, rows, positions, attended, own, units * member // members,
                units * (member + 1) // members,
            )  # fmt: skip
            if members > 1:
                call(given[_BARRIER])
            multiply(table[_OUTPUT:], at_attended, wide, slots, at_sums, hidden, first, last, own)
            for slot in range(slots):
                for part in range(slot * hidden + first, slot * hidden + last):
                    state[part] += sums[part]
            if members > 1:
                call(given[_BARRIER])
            if not given[_PARALLEL]:
                normalise_all(state, second, slots, hidden, table[_MLP_NORM:])
            multiply(table[_MLP_IN:], at_second, hidden, slots, at_inner, inner, inner_first, inner_last, own)
            if given[_GATED]:  # the gate's rows, then those of what it lets through
                multiply(
                    table[_MLP_IN:], at_second, hidden, slots, at_up - 4 * inner, inner, inner + inner_first,
                    inner + inner_last, own,
                )  # fmt: skip
            for slot in range(slots):
                start, end = slot * inner + inner_first, slot * inner + inner_last
                activate(given[_ACTIVATION], middle[start:end], end - start)
                if given[_GATED]:
                    for place in range(start, end):
                        middle[place] *= up[place]
            if members > 1:
                call(given[_BARRIER])
            multiply(table[_MLP_OUT:], at_inner, inner, slots, at_sums, hidden, first, last, own)
            for slot in range(slots):
                for part in range(slot * hidden + first, slot * hidden + last):
                    state[part] += sums[part]
            if members > 1:
                call(given[_BARRIER])

    _kept.append(run)
    return int(run.address)


_kept: list[Callable[..., None]] = []


class CompiledLayers:
    """The layers of a model whose matrices are compiled; see :meth:`of`."""

    def __init__(self, blocks: Sequence[Block], bits: type[Bits], activation: int) -> None:
        self._blocks, self._bits = blocks, bits
        block, layers = blocks[0], [_facts(block) for block in blocks]
        self._table = torch.tensor(layers, dtype=torch.int64)
        self._threads = threading.local()
        heads = block.heads
        self._inner = block.mlp_out.shape[1]
        self._hidden = block.qkv.shape[1]
        self._facts = {
            _HIDDEN: self._hidden, _HEADS: heads.query_heads, _KV_HEADS: heads.kv_heads, _HEAD_DIM: heads.head_dim,
            _INNER: self._inner, _GATED: int(block.gated), _PARALLEL: int(block.parallel), _ACTIVATION: activation,
            _TABLE: self._table.data_ptr(), _SIZE: team().size, _MEMBER: team().member,
            _BARRIER: team().barrier,
        }  # fmt: skip
        _body(bits)

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> CompiledLayers | None:
        """Compile the layers of a model; ``None`` where they are not what is compiled here.

        That is: all matrices in one packed format, norms before attention and MLP, float32 activations on a CPU, widths
        of whole steps of 32, and a non-linearity that is known.
        """
        found = set[tuple[type[Bits], int]]()
        for block in blocks:
            maps = (block.qkv, block.output, block.mlp_in, block.mlp_out)
            norms = (block.attention_norm, block.mlp_norm, block.query_norm, block.key_norm)
            kind = _activation(block.activation)
            if block.post_norm or kind is None or block.heads.head_dim % STEP or not all(map(_is_plain, norms)):
                return None
            for matrix in maps:
                if not isinstance(matrix, CompiledLinear) or matrix.width % STEP:
                    return None
                found.add((matrix.bits, kind))
        if len(found) != 1:
            return None
        ((bits, activation),) = found
        return cls(blocks, bits, activation)

    def slots(self, cache: KVCache, rotary: Rotary | None, rows: Sequence[int], positions: Sequence[int]) -> Slots:
        """Return tokens that are to go through layers together.

        Args:
            cache: where keys and values are kept, and those of the positions before are.
            rotary: position tables, or ``None``.
            rows: of each token, the row of the cache.
            positions: of each; a token sees everything of its row up to itself.
        """
        facts, heads, count = self._facts, self._blocks[0].heads, len(rows)
        strides = cache.entries.stride()
        at = torch.tensor([[row * strides[1] for row in rows], list(positions)], dtype=torch.int64)
        shared = count * ((heads.query_heads + 2 * heads.kv_heads) * heads.head_dim + heads.query_width)
        shared += count * (2 * self._inner + self._hidden)
        longest = max(self._hidden, self._inner, heads.query_width)
        own = 2 * count * self._hidden + max(heads.head_dim + max(positions) + 1, COLUMNS * longest)
        own += -own % 16
        threads = torch.get_num_threads()
        work = self._work(shared + threads * own)
        given = _Parameters()
        for place, value in facts.items():
            given[place] = value
        tables = None if rotary is None else rotary.plain
        given[_TURNING] = 0 if tables is None else tables[0].shape[1]
        given[_COS], given[_SIN] = (0, 0) if tables is None else (tables[0].data_ptr(), tables[1].data_ptr())
        given[_ENTRIES], given[_LAYER_STRIDE], given[_HEAD_STRIDE] = cache.entries.data_ptr(), strides[0], strides[2]
        given[_ROWS], given[_POSITIONS], given[_SLOTS] = at[0].data_ptr(), at[1].data_ptr(), count
        given[_WORK], given[_OWN], given[_OWN_SIZE] = work.data_ptr(), work.data_ptr() + 4 * shared, own
        return Slots(given, _body(self._bits), threads, (at, work, tables, cache.entries, self))

    def _work(self, size: int) -> Tensor:
        """Return numbers to compute with, the same for every call of a thread."""
        kept: Tensor | None = getattr(self._threads, "work", None)
        if kept is None or len(kept) < size:
            kept = self._threads.work = torch.empty(2 * size)
        return kept


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Tokens on their way through compiled layers."""

    given: Any
    function: int
    threads: int
    held: tuple[Any, ...]

    def run(self, state: Tensor, first: int, last: int) -> Tensor:
        """Return the states ``[tokens, hidden_size]`` after layers ``first`` to ``last - 1``; keeps keys and values."""
        state = state.clone(memory_format=torch.contiguous_format)
        self.given[_STATE], self.given[_FIRST], self.given[_LAST] = state.data_ptr(), first, last
        team().run(self.function, ctypes.addressof(self.given), self.threads)
        return state


def _facts(block: Block) -> list[int]:
    """Return a layer's row of the table."""
    facts: list[int] = []
    for matrix in (block.qkv, block.output, block.mlp_in, block.mlp_out):
        assert isinstance(matrix, CompiledLinear)
        facts += [matrix.data.data_ptr(), matrix.data.stride(0), _address(matrix.bias)]
    for norm in (block.attention_norm, block.mlp_norm, block.query_norm, block.key_norm):
        kind = _NO_NORM if norm is None else _RMS_NORM if isinstance(norm, RMSNorm) else _LAYER_NORM
        bias = norm.bias if isinstance(norm, LayerNorm) else None
        weight, epsilon = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        facts += [kind, _address(weight), _address(bias), _bits_of(epsilon)]
    return [*facts, _bits_of(block.scale)]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _bits_of(number: float) -> int:
    return int(np.float32(number).view(np.int32))


def _is_plain(norm: Norm | None) -> bool:
    """Whether a norm's numbers are float32 on a CPU, side by side."""
    parts = () if norm is None else (norm.weight, norm.bias if isinstance(norm, LayerNorm) else None)
    return all(
        part is None or (part.dtype is torch.float32 and part.device.type == "cpu" and part.is_contiguous())
        for part in parts
    )


def _activation(function: Callable[[Tensor], Tensor]) -> int | None:
    """Return which non-linearity a function is, by what it gives."""
    x = torch.linspace(-6, 6, 101)
    try:
        given = function(x)
    except (RuntimeError, TypeError):
        return None
    for kind, known in enumerate(_ACTIVATIONS):
        if torch.allclose(given, known(x), rtol=1e-5, atol=1e-6):
            return kind
    return None
