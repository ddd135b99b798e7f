"""Segments between exits as recorded work: on CUDA a graph each, replayed over tensors that stay where they are.

At one token a time, launching a layer's kernels takes longer than running them. So the layers of a segment are recorded
once for a batch's size and launched together from then on. What changes between tokens stands in tensors of fixed
shapes: states, positions, what is visible. Rows that have left, and places of a run that a row does not use, are
computed along and write to a spare position, so that neither shape nor address depends on who is still running.

Chosen on CUDA devices alone. Never run on a GPU by its authors: the tests replay the same work by a recorder of their
own, on a device that computes on the CPU (``tests/decoding/test_graphs.py``). Not promised: speed. Attention reads all
positions of the cache, a power of two of them; runs of more than eight tokens of a row, KV policies that hide positions
(``skip``), prompts, norm and LM head are launched kernel by kernel.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts import Graphs
from harness.decoding.backbone import Backbone, upload
from harness.decoding.blocks import Block, Linear, Rotary
from harness.decoding.cache import KVCache
from harness.errors import OptionError, reason

WIDTHS = (1, 2, 4, 8)
"""Consecutive tokens of a row that go through a segment together."""

SHORTEST = 256  # positions of a cache
KEPT = 4  # caches, with their graphs, that wait for the next batch of their size


class Recorder(Protocol):
    """Makes work repeatable."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do some work, at least once, and return what does the same kernels again, on the same memory.

        Args:
            work: reads and writes tensors that stay, reads nothing to the host, and may be done several times.
        """


class CudaGraphs:
    """Records CUDA graphs that share a memory pool: nothing of one's own memory is read after another has run."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._living: weakref.WeakSet[Any] = weakref.WeakSet()  # the pool takes no other once all are gone
        self._stream: Any = None  # torch's own default is one of the first device that any graph was captured on
        self._aside: Any = None

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do the work once, since libraries set themselves up, and capture it.

        Raises:
            OptionError: it waits for the device, which cannot be captured.
        """
        with torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                self._aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._do_aside(work)
            if not self._living:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            self._living.add(graph)
            # Other threads, as a server's or a meter's, may use CUDA meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        return graph.replay

    def _do_aside(self, work: Callable[[], None]) -> None:
        """Do it on a stream that no graph is captured on.

        What cuBLAS keeps for a stream would else lie outside the graphs' pool, and be freed under those that use it
        when the first of them goes.
        """
        current, before = torch.cuda.current_stream(), torch.cuda.get_sync_debug_mode()
        self._aside.wait_stream(current)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(self._aside):
                work()
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
            raise OptionError(
                f"what is to be recorded waits for the device: {reason(error)}. Use --graphs off."
            ) from error
        finally:
            torch.cuda.set_sync_debug_mode(before)
            current.wait_stream(self._aside)


def recorder_for(backbone: Backbone, graphs: Graphs = "segments") -> Recorder | None:
    """Return what records a model's segments; ``None`` where they are not to be recorded, or cannot be."""
    able = backbone.device.type == "cuda" and all(isinstance(one, Linear) for one in backbone.linear_maps())
    return CudaGraphs(backbone.device) if graphs == "segments" and able else None


class StaticCaches:
    """Caches that stay where they are: one that is no longer used serves the next batch of its size, graphs and all."""

    def __init__(self, backbone: Backbone, recorder: Recorder) -> None:
        self._backbone, self._recorder = backbone, recorder
        self._free: list[RecordedCache] = []

    def take(self, rows: int, positions: int, rotary: Callable[[int], Rotary | None]) -> RecordedCache:
        """Return an empty cache that nobody else has; it comes back when it is no longer referred to.

        Args:
            rows: batch size.
            positions: longest sequence it must hold.
            rotary: makes position tables for so many positions at least, or for all that the model has.
        """
        length = max(SHORTEST, 1 << positions.bit_length())  # more than positions: the last one is spare
        shape = (rows, length)
        found = next((one for one in self._free if one.entries.shape[1:4:2] == shape), None)
        with torch.inference_mode(mode=False):  # whoever takes it first: tensors of that mode are not wiped outside
            if found is None:
                found = RecordedCache(self._backbone, rows, length, rotary(length), self._recorder)
            else:
                self._free.remove(found)
                found.entries.zero_()
        lent = copy.copy(found)
        weakref.finalize(lent, self._give_back, found).atexit = False
        return lent

    def _give_back(self, cache: RecordedCache) -> None:
        self._free.append(cache)
        del self._free[:-KEPT]


@dataclass(slots=True, eq=False)
class Buffers:
    """Buffers that recorded work of one width reads and writes; ``S`` = rows × width slots, a row's together."""

    state: Tensor  # [S, hidden_size], of the segment's first layer
    after: Tensor  # [S, hidden_size], of its last
    positions: Tensor  # [2, S]: of the token, and where its keys and values go
    mask: Tensor  # [rows, 1, width × group, length], added to scores
    cos: Tensor | None  # [S, heads, rotary_dim]
    sin: Tensor | None
    loaded: Tensor | None = None  # positions of the slots they hold; not the slots, which hold the cache's segments


class Segments:
    """The recorded segments of one cache.

    Args:
        recorder: records them, each when it is first run.
    """

    def __init__(self, backbone: Backbone, rotary: Rotary | None, cache: KVCache, recorder: Recorder) -> None:
        self._backbone, self._rotary, self._recorder = backbone, rotary, recorder
        self._entries = cache.entries
        self._row_count, self._length = cache.entries.shape[1], cache.entries.shape[3]
        self._buffers: dict[int, Buffers] = {}
        self._recorded: dict[tuple[int, int, int], Callable[[], None]] = {}
        device = backbone.device
        self._places = torch.arange(self._length, device=device)
        self._row_of = {width: torch.arange(self._row_count * width, device=device) // width for width in WIDTHS}

    def slots(self, rows: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> RowSlots | None:
        """Return a run of tokens of each of some rows; ``None`` where one is too long.

        Args:
            rows: of the cache.
            starts: position of each run's first token.
            ends: of its last; one before the first where a row has none.
        """
        longest = max(end - start + 1 for start, end in zip(starts, ends, strict=True))
        width = next((width for width in WIDTHS if longest <= width), None)
        if width is None:
            return None
        seen, kept = [0] * (self._row_count * width), [self._length - 1] * (self._row_count * width)
        used: list[int] = []
        for row, start, end in zip(rows, starts, ends, strict=True):
            for place, position in enumerate(range(start, end + 1), row * width):
                seen[place] = kept[place] = position
                used.append(place)
        device = self._backbone.device
        index = None if len(used) == len(seen) and used == sorted(used) else upload(used, device)
        return RowSlots(self, width, upload([seen, kept], device), index)

    def load(self, held: RowSlots) -> Buffers:
        """Return the buffers of a width, with positions, tables and mask of these slots."""
        found = self._buffers.get(held.width)
        if found is None:
            found = self._buffers[held.width] = self._make(held.width)
        if found.loaded is not held.positions:
            found.loaded = held.positions
            found.positions.copy_(held.positions)
            self._do(held.width, 0, 0, lambda: self._begin(held.width, found))
        return found

    def run(self, width: int, first: int, last: int, buffers: Buffers) -> None:
        """Take what the buffers hold through layers ``first`` to ``last - 1``."""
        rows, written = self._row_of[width], buffers.positions[1]
        tables = None if buffers.cos is None or buffers.sin is None else (buffers.cos, buffers.sin)

        def work() -> None:
            state = buffers.state
            for index, block in enumerate(self._backbone.blocks[first:last], first):
                queries, entries = block.project(state, self._rotary, tables)
                self._entries[index, rows, :, written] = entries
                state = block.finish(state, self._attend(block, index, queries, buffers.mask, width))
            buffers.after.copy_(state)

        self._do(width, first, last, work)

    def _do(self, width: int, first: int, last: int, work: Callable[[], None]) -> None:
        again = self._recorded.get((width, first, last))
        if again is None:
            self._recorded[width, first, last] = self._recorder.record(work)
        else:
            again()

    def _make(self, width: int) -> Buffers:
        heads, like, slots = self._backbone.heads, self._backbone.like, self._row_count * width
        hidden = self._backbone.blocks[0].qkv.shape[1]
        group = heads.query_heads // heads.kv_heads
        positions = torch.zeros((2, slots), dtype=torch.int64, device=like.device)
        tables = None if self._rotary is None else self._rotary.tables(positions[0])
        return Buffers(
            state=like.new_zeros((slots, hidden)),
            after=like.new_zeros((slots, hidden)),
            positions=positions,
            mask=like.new_zeros((self._row_count, 1, width * group, self._length)),
            cos=None if tables is None else tables[0],
            sin=None if tables is None else tables[1],
        )

    def _begin(self, width: int, buffers: Buffers) -> None:
        at = buffers.positions[0]
        hidden = (self._places > at.unsqueeze(1)).view(self._row_count, width, 1, self._length)
        hidden = hidden.expand(-1, -1, buffers.mask.shape[2] // width, -1).reshape(buffers.mask.shape)
        buffers.mask.zero_().masked_fill_(hidden, -math.inf)
        if self._rotary is not None and buffers.cos is not None and buffers.sin is not None:
            cos, sin = self._rotary.tables(at)
            buffers.cos.copy_(cos)
            buffers.sin.copy_(sin)

    def _attend(self, block: Block, index: int, queries: Tensor, mask: Tensor, width: int) -> Tensor:
        """Attend, ``[S, H, D]`` → ``[S, H × D]``: query heads that share keys are as so many places of one head.

        Kernels that take a mask take no grouped heads, and torch would copy keys and values for each of them.
        """
        heads = block.heads
        group = heads.query_heads // heads.kv_heads
        apart = queries.reshape(self._row_count, width, heads.kv_heads, group, heads.head_dim).transpose(1, 2)
        together = apart.reshape(self._row_count, heads.kv_heads, width * group, heads.head_dim)
        keys, values = self._entries[index].chunk(2, dim=1)
        out = F.scaled_dot_product_attention(together, keys, values, attn_mask=mask, scale=block.scale)
        out = out.reshape(self._row_count, heads.kv_heads, width, group, heads.head_dim).transpose(1, 2)
        return out.reshape(-1, heads.query_width)


class RecordedCache(KVCache):
    """Keys and values that stay where they are, and the recorded segments over them; the last position is spare.

    Args:
        positions: longest sequence that it must hold, and the spare one.
    """

    def __init__(
        self, backbone: Backbone, rows: int, positions: int, rotary: Rotary | None, recorder: Recorder
    ) -> None:
        super().__init__(backbone.num_layers, rows, positions, backbone.heads, backbone.like)
        self.segments = Segments(backbone, rotary, self, recorder)

    def wipe(self, row: int, start: int, end: int) -> None:
        """Fill positions of a row with zeros, the spare one, too."""
        super().wipe(row, start, end)
        self.entries[:, row, :, -1] = 0


@dataclass(frozen=True, slots=True, eq=False)
class RowSlots:
    """Tokens on their way through recorded segments. Made by :meth:`Segments.slots`.

    Attributes:
        width: places of a row.
        positions: ``[2, S]``, as the buffers have them.
        index: which of the places are theirs, ``[n]``; ``None`` for all.
    """

    segments: Segments
    width: int
    positions: Tensor
    index: Tensor | None

    def run(self, state: Tensor, first: int, last: int) -> Tensor:
        """Return the states ``[n, hidden_size]`` after layers ``first`` to ``last - 1``; keeps keys and values."""
        buffers = self.segments.load(self)
        if self.index is None:
            buffers.state.copy_(state)
        else:
            buffers.state.zero_().index_copy_(0, self.index, state)
        self.segments.run(self.width, first, last, buffers)
        return buffers.after.clone() if self.index is None else buffers.after[self.index]
