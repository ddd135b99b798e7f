"""One packed matrix times rows, and whole layers for a few tokens in one call, compiled.

A token passes all layers up to the next exit without coming back to Python, on the threads that multiply. It has the
same bits alone, in a batch, and among tokens that are verified together.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.decoding.blocks import LayerNorm, RMSNorm
from harness.decoding.kernels import COLUMNS, GROUP, QUERIES, ROOM, Kind, address_of, room, tables, team

if TYPE_CHECKING:
    from harness.contracts import StateScore, StateTest
    from harness.decoding.blocks import Block, Norm, Rotary
    from harness.decoding.cache import KVCache


_PACKED_TOGETHER = 1 << 21  # weights that are rounded together
_ALONE = 1 << 18  # multiplications, below which a second thread costs more than it brings


def in_panels(weight: Tensor) -> Tensor:
    """Lay a matrix ``[out, in]`` out as ``[panels, in, COLUMNS]``, padded with zeros to whole panels and groups."""
    count, width = weight.shape
    padded = F.pad(weight, (0, -width % GROUP, 0, -count % COLUMNS))
    return padded.view(-1, COLUMNS, padded.shape[1]).transpose(1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class CompiledLinear:
    """``x @ weight.T + bias`` from packed panels. Implements :class:`harness.contracts.LinearMap`.

    Attributes:
        kind: how panels are stored.
        data: ``[panels, bytes of a panel]`` uint8.
        shape: rows of the result and of the input, ``(out, in)``, without padding.
        bias: ``[out]`` float32, or ``None``.
        first: column of the first panel that is the first row of the result.
    """

    kind: Kind
    data: Tensor
    shape: tuple[int, int]
    bias: Tensor | None = None
    first: int = 0

    def __post_init__(self) -> None:
        address_of(self.kind.name)

    @classmethod
    def of(
        cls, kind: Kind, weight: Tensor, bias: Tensor | None, panels: Callable[[Tensor], Sequence[Tensor]]
    ) -> CompiledLinear:
        """Pack a matrix ``[out, in]`` some rows at a time, so that what rounding needs beside them stays small.

        ``panels`` makes of rows what stands one behind the other in each of their panels, ``[panels, …]`` each.
        """
        count, width = weight.shape
        data = room((-(-count // COLUMNS), kind.panel_bytes(width)))
        step = max(1, _PACKED_TOGETHER // (width * COLUMNS))
        for first in range(0, len(data), step):
            parts = panels(weight[first * COLUMNS : (first + step) * COLUMNS])
            bytes_of = [part.contiguous().view(torch.uint8).view(len(part), -1) for part in parts]
            torch.cat(bytes_of, dim=1, out=data[first : first + step])
        return cls(kind, data, (count, width), None if bias is None else bias.float())

    def __call__(self, x: Tensor) -> Tensor:
        """Map ``[n, in]`` to ``[n, out]``, in the dtype of ``x``; sums are float32."""
        rows, (count, width), threads = x.float(), self.shape, torch.get_num_threads()
        inputs = width + -width % GROUP
        if inputs != width:
            rows = F.pad(rows, (0, inputs - width))
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        number, columns = len(rows), COLUMNS * len(self.data)
        out = rows.new_empty((number, columns))
        if number * columns * inputs < _ALONE:
            threads = 1
        room, together = rows.new_empty(threads * ROOM), team()
        given = tables.ProductParameters(
            self.data.data_ptr(), inputs, columns, rows.data_ptr(), 4 * rows.stride(0), number, out.data_ptr(),
            columns, room.data_ptr(), address_of(self.kind.name), together.size, together.member,
        )  # fmt: skip
        together.run(address_of("threads"), ctypes.addressof(given), threads)
        out = out[:, self.first : self.first + count]
        return (out if self.bias is None else out + self.bias).to(x.dtype)

    def rows(self, start: int) -> CompiledLinear:
        """Return the map restricted to output columns from ``start`` on, sharing storage."""
        first, bias = self.first + start, None if self.bias is None else self.bias[start:]
        shape = self.shape[0] - start, self.shape[1]
        return CompiledLinear(self.kind, self.data[first // COLUMNS :], shape, bias, first % COLUMNS)

    @property
    def nbytes(self) -> int:
        """Bytes read to apply it once."""
        return self.data.nbytes + (0 if self.bias is None else self.bias.nbytes)


_ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    tables.RELU: F.relu,
    tables.SILU: F.silu,
    tables.TANH: lambda x: F.gelu(x, approximate="tanh"),
    tables.ERF: F.gelu,
}


class CompiledLayers:
    """The layers of a model whose matrices are compiled; see :meth:`of`."""

    def __init__(self, blocks: Sequence[Block], activation: int) -> None:
        self.blocks = blocks
        block, layers = blocks[0], [_facts(block) for block in blocks]
        self._table = torch.tensor(layers, dtype=torch.int64)
        self._threads = threading.local()
        self._packed: WeakKeyDictionary[StateTest, dict[tuple[int, ...], PackedTest | None]] = WeakKeyDictionary()
        heads = block.heads
        self._inner = block.mlp_out.shape[1]
        self._hidden = block.qkv.shape[1]
        self._longest = max(self._hidden, self._inner, heads.query_width)
        self._model = tables.Parameters(
            hidden=self._hidden, heads=heads.query_heads, kv_heads=heads.kv_heads, head_dim=heads.head_dim,
            inner=self._inner, gated=block.gated, parallel=block.parallel, activation=activation,
            table=self._table.data_ptr(), size=team().size, member=team().member, barrier=team().barrier,
        )  # fmt: skip
        address_of("layers")

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> CompiledLayers | None:
        """Compile the layers of a model; ``None`` where they are not what is compiled here.

        That is: packed matrices of whole panels, norms before attention and MLP, float32 activations on a CPU, and one
        non-linearity that is known.
        """
        found = set[int]()
        for block in blocks:
            maps = (block.qkv, block.output, block.mlp_in, block.mlp_out)
            norms = (block.attention_norm, block.mlp_norm, block.query_norm, block.key_norm)
            kind = _activation(block.activation)
            if block.post_norm or kind is None or block.heads.head_dim % COLUMNS or not all(map(_is_plain, norms)):
                return None
            for matrix in maps:
                if not isinstance(matrix, CompiledLinear) or matrix.shape[0] % COLUMNS or matrix.shape[1] % GROUP:
                    return None
            found.add(kind)
        return cls(blocks, found.pop()) if len(found) == 1 and blocks[0].mlp_out.shape[1] % COLUMNS == 0 else None

    def slots(
        self,
        cache: KVCache,
        rotary: Rotary | None,
        rows: Sequence[int],
        positions: Sequence[int],
        asking: Mapping[int, Asking] | None = None,
    ) -> Slots:
        """Return tokens that are to go through layers together.

        Args:
            cache: where keys and values are kept, and those of the positions before are.
            rotary: position tables, or ``None``.
            rows: of each token, the row of the cache.
            positions: of each; a token sees everything of its row up to itself.
            asking: rows → checks of a row's last token, which let it go or not.
        """
        heads, count = self.blocks[0].heads, len(rows)
        strides = cache.entries.stride()
        at = torch.tensor([[row * strides[1] for row in rows], list(positions)], dtype=torch.int64)
        shared = count * ((heads.query_heads + 2 * heads.kv_heads) * heads.head_dim + heads.query_width)
        shared += count * (2 * self._inner + self._hidden)
        attending = QUERIES * (2 * heads.head_dim + max(positions) + 1 + 32)
        own = 2 * count * self._hidden + max(attending, 2 * self._longest, ROOM)
        own += -own % 16
        threads = torch.get_num_threads()
        work = self._work(shared + threads * own)
        given = tables.Parameters.from_buffer_copy(self._model)
        turns = None if rotary is None else rotary.plain
        if turns is not None:
            given.turning, given.cos, given.sin = turns[0].shape[1], turns[0].data_ptr(), turns[1].data_ptr()
        given.entries, given.layer_stride, given.head_stride = cache.entries.data_ptr(), strides[0], strides[2]
        given.rows, given.positions, given.slots = at[0].data_ptr(), at[1].data_ptr(), count
        given.work, given.own, given.own_size = work.data_ptr(), work.data_ptr() + 4 * shared, own
        last, asking = {row: slot for slot, row in enumerate(rows)}, asking or {}
        asked = torch.tensor([one.packed_at(last[row]) for row, one in asking.items()], dtype=torch.int64)
        given.asking, given.asked = asked.data_ptr(), len(asked)
        held = (at, work, turns, cache.entries, self)
        return Slots(given, address_of("layers"), threads, held, tuple(asking.values()), asked)

    def asking(self, test: StateTest, points: Sequence[int]) -> Asking | None:
        """Return the checks of one token that are made after some layers; ``None`` where they are not compiled here."""
        by_points, key = self._packed.setdefault(test, {}), tuple(points)
        if key not in by_points:
            by_points[key] = PackedTest.of(test, key, self._hidden, self._longest)
        packed = by_points[key]
        return None if packed is None else Asking(packed, test, key, self._hidden)

    def _work(self, size: int) -> Tensor:
        """Return numbers to compute with, the same for every call of a thread."""
        kept: Tensor | None = getattr(self._threads, "work", None)
        if kept is None or len(kept) < size:
            kept = self._threads.work = torch.empty(2 * size)
        return kept


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Tokens on their way through compiled layers; ``asked`` is where these note the checks that they make."""

    given: Any
    function: int
    threads: int
    held: tuple[Any, ...]
    asking: tuple[Asking, ...]
    asked: Tensor

    def run(self, state: Tensor, first: int, last: int) -> Tensor:
        """Return the states ``[tokens, hidden_size]`` after layers ``first`` to ``last - 1``; keeps keys and values.

        Or after that where a check lets a row's last token go, see :attr:`Asking.left`.
        """
        given = self.given
        state = state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        given.state, given.first, given.last = state.data_ptr(), first, last
        team().run(self.function, ctypes.addressof(given), self.threads)
        for one, now in zip(self.asking, self.asked.tolist(), strict=True):
            one.take(now, given.left)
        return state

    def fill(self, state: Tensor, first: int, last: int) -> None:
        """Keep what layers ``first`` to ``last - 1`` make keys and values of, were ``state`` the input of each."""
        self.given.fills = 1
        self.run(state, first, last)
        self.given.fills = 0


def _facts(block: Block) -> list[int]:
    facts: list[int] = []
    for matrix in (block.qkv, block.output, block.mlp_in, block.mlp_out):
        assert isinstance(matrix, CompiledLinear)
        facts += [matrix.data.data_ptr(), address_of(matrix.kind.name), _address(matrix.bias)]
    for norm in (block.attention_norm, block.mlp_norm, block.query_norm, block.key_norm):
        kind = tables.NO_NORM if norm is None else tables.RMS_NORM if isinstance(norm, RMSNorm) else tables.LAYER_NORM
        bias = norm.bias if isinstance(norm, LayerNorm) else None
        weight, epsilon = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        facts += [tables.NO_NORM if norm is None else kind, _address(weight), _address(bias), _bits_of(epsilon)]
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
    x = torch.cat([torch.linspace(-reach, reach, 101) for reach in (6.0, 200.0)])
    try:
        given = function(x)
    except (RuntimeError, TypeError):
        return None
    for kind, known in _ACTIVATIONS.items():
        if torch.allclose(given, known(x), rtol=1e-5, atol=1e-6):
            return kind
    return None


def _fits(one: StateScore, hidden: int, most: int) -> bool:
    """Whether a score's tensors are what is read of them: nothing else stands between them and the memory behind."""
    count = width = one.bias.numel()
    shapes = [(one.bias, (count,)), (one.weight, (count, hidden)), (one.change, (3, count))]
    for weight, bias in one.later:
        shapes += [(weight, (bias.numel(), width)), (bias, (bias.numel(),))]
        width = bias.numel()
        if width > count:
            return False
    shapes.append((one.offsets, (width,)))
    given = [(tensor, shape) for tensor, shape in shapes if tensor is not None]
    plain = all(tensor.dtype is torch.float32 and tensor.device.type == "cpu" for tensor, _ in given)
    plain &= one.activation in tables.CHECK_ACTIVATIONS
    return (
        plain
        and (width == 1 or one.offsets is not None)
        and count <= most
        and all(tensor.shape == shape for tensor, shape in given)
    )


class PackedTest:
    """A state test as compiled layers read it; see :meth:`of`."""

    def __init__(self, scores: Sequence[StateScore], points: Sequence[int]) -> None:
        self._held: list[Tensor] = []
        self.table = torch.tensor(
            [self._row(one, point) for one, point in zip(scores, points, strict=True)], dtype=torch.int64
        )
        self.most = int(self.table[:, tables.TEST_COUNT].max())

    @classmethod
    def of(cls, test: StateTest, points: Sequence[int], hidden: int, most: int) -> PackedTest | None:
        """Pack a test; ``None`` where it is not what is compiled here.

        Args:
            test: with a score for each point.
            points: layers after which it is made.
            hidden: width of a state, a multiple of 32.
            most: outputs that a layer of a network may have.
        """
        in_order = list(points) == sorted(set(points)) and len(points) == len(test.scores)
        return cls(test.scores, points) if in_order and all(_fits(one, hidden, most) for one in test.scores) else None

    def _row(self, one: StateScore, point: int) -> list[int]:
        later = [[self._at(weight), self._at(bias), len(bias)] for weight, bias in one.later]
        packed = torch.tensor(later, dtype=torch.int64).reshape(-1, tables.LATER_COLUMNS)
        return [
            point, len(one.bias), self._at(one.weight), self._at(one.bias), self._at(one.change), one.normalise,
            tables.CHECK_ACTIVATIONS[one.activation], len(later), self._at(packed),
            self._at(one.offsets),
        ]  # fmt: skip

    def _at(self, tensor: Tensor | None) -> int:
        if tensor is None or not tensor.numel():
            return 0
        self._held.append(tensor.contiguous())
        return self._held[-1].data_ptr()


class Asking:
    """The checks of one row's token, made on its way through compiled layers.

    Attributes:
        test: which they are.
        points: layers after which they are made.
        made: how many of them, so far.
        left: layer after which the last of them reached the threshold; ``None`` while none has, or when layers ran on.
    """

    def __init__(self, packed: PackedTest, test: StateTest, points: Sequence[int], hidden: int) -> None:
        self._packed, self.test, self.points = packed, test, points
        self._kept = torch.empty(len(packed.table), hidden)
        self._numbers = torch.empty(packed.most + len(packed.table))
        self.made = 0
        self.left: int | None = None

    def packed_at(self, slot: int) -> list[int]:
        """Return what compiled layers read to go on asking about a slot."""
        packed, at = self._packed, self._numbers.data_ptr()
        return [
            slot, packed.table.data_ptr(), self.made, len(packed.table), _bits_of(self.test.threshold),
            self._kept.data_ptr(), at, at + 4 * packed.most, 0,
        ]  # fmt: skip

    def take(self, packed: Sequence[int], layer: int) -> None:
        """Take in what came of it; ``layer`` is where some row's check ended the call, or 0."""
        self.made = packed[tables.ASKED_MADE]
        self.left = layer if layer and packed[tables.ASKED_LEFT] == layer else None

    @property
    def scores(self) -> list[float]:
        """Scores of the checks that were made."""
        start = self._packed.most
        return self._numbers[start : start + self.made].tolist()

    @property
    def states(self) -> Tensor:
        """States that were checked, ``[made, hidden_size]``."""
        return self._kept[: self.made]
