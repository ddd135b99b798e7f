"""One token's way through the layers, for every row that is still running.

A pass advances segment by segment and can be left by some rows at any exit point. ``PrefixPass``
runs whole prefixes, for every token where no cache is kept; ``TokenPass`` runs one new
token per row against the cache, and earlier tokens that had stopped short, where the KV policy says so.
Prefill, which nobody leaves, is :class:`harness.decoding.prompt_pass.PromptPass`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts import KVPolicy, StateTest, Waiting
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Rotary, Tables
from harness.decoding.cache import KVCache, attend, attend_span
from harness.decoding.generation import Generation
from harness.decoding.transfer import pick, upload
from harness.errors import OptionError

if TYPE_CHECKING:
    from harness.decoding.graphs import RowSlots
    from harness.decoding.kernels.layers import Slots
    from harness.decoding.kernels.state_tests import Asking

__all__ = ["Pass", "Places", "PrefixPass", "Standing", "TokenPass"]


class Standing(Protocol):
    """Rows somewhere on their way through the layers."""

    rows: list[int]
    layer: int

    @property
    def positions(self) -> list[int]:
        """Position of the token each row is processing, 0-based."""

    def hidden(self) -> Tensor:
        """Return the hidden state of each remaining row's token, ``[n, hidden_size]``."""

    def rehearse(self) -> Tensor:
        """Return the hidden states the last layer would give, without moving the pass."""


class Pass(Standing, Protocol):
    """Rows on their way through the layers."""

    def advance(self, layer: int) -> None:
        """Run the remaining rows until ``layer`` layers are executed."""

    def leave(self, staying: Sequence[int]) -> None:
        """Keep only the rows at these places of ``rows``; the others stop here."""


@dataclass(slots=True)
class Places:
    """Hidden states, each as if it were a row's; ``rows`` says which row's it is. Implements :class:`Standing`."""

    rows: list[int]
    positions: list[int]
    layer: int
    state: Tensor

    def hidden(self) -> Tensor:
        """All of them, ``[n, hidden_size]``."""
        return self.state

    def rehearse(self) -> Tensor:
        """Refuse: the last layer is on its way."""
        raise OptionError("a draft rule cannot look ahead while a draft is verified; verified() tells it the tokens.")


class PrefixPass:
    """Whole prefixes of several rows, right-padded: causal attention never looks at the padding.

    Args:
        backbone: the model.
        rotary: position tables long enough for the prefixes.
        prefixes: tokens of each row, all of them.
        rows: which rows of the batch these are.
        tally: counts are charged to these, one per row of the batch; ``None`` charges none.
    """

    def __init__(
        self,
        backbone: Backbone,
        rotary: Rotary | None,
        prefixes: Sequence[Sequence[int]],
        rows: list[int],
        tally: Sequence[Generation] | None = None,
    ) -> None:
        self._backbone, self._tally, self._rotary = backbone, tally, rotary
        self.rows, self.layer = list(rows), 0
        lengths = [len(prefix) for prefix in prefixes]
        longest = max(lengths)
        device = backbone.device
        padded = upload([[*prefix, *[0] * (longest - len(prefix))] for prefix in prefixes], device)
        places = torch.arange(longest, device=device).repeat(len(prefixes))
        self._hidden = backbone.embed(padded.flatten(), places).view(len(prefixes), longest, -1)
        self._positions = [length - 1 for length in lengths]
        self._last = upload(self._positions, device)
        self._tables = None if rotary is None else rotary.tables(torch.arange(longest, device=device))

    @property
    def positions(self) -> list[int]:
        """Position of each row's last token."""
        return self._positions

    def advance(self, layer: int) -> None:
        """Run whole prefixes up to ``layer``."""
        self._charge(layer - self.layer)
        self._hidden = self._run(self._hidden, self.layer, layer)
        self.layer = layer

    def hidden(self) -> Tensor:
        """Return the last position of each row."""
        return self._at_last(self._hidden)

    def states(self) -> Tensor:
        """Return the hidden states of every position, ``[n, longest, hidden_size]``; undefined at padding."""
        return self._hidden

    def leave(self, staying: Sequence[int]) -> None:
        """Keep some rows."""
        index = upload(staying, self._hidden.device)
        self.rows = [self.rows[place] for place in staying]
        self._positions = [self._positions[place] for place in staying]
        self._hidden, self._last = self._hidden[index], self._last[index]

    def rehearse(self) -> Tensor:
        """Run a copy to the last layer."""
        self._charge(self._backbone.num_layers - self.layer)
        return self._at_last(self._run(self._hidden, self.layer, self._backbone.num_layers))

    def _charge(self, layers: int) -> None:
        if self._tally is not None:
            for row in self.rows:
                self._tally[row].layers_executed += layers

    def _at_last(self, hidden: Tensor) -> Tensor:
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), self._last]

    def _run(self, hidden: Tensor, start: int, end: int) -> Tensor:
        count, length, width = hidden.shape
        heads = self._backbone.heads
        tables = self._tables
        if tables is not None and count > 1:
            tables = (tables[0].repeat(count, 1, 1), tables[1].repeat(count, 1, 1))
        flat = hidden.reshape(count * length, width)
        for index in range(start, end):
            block = self._backbone.blocks[index]
            queries, entries = (
                part.view(count, length, -1, heads.head_dim).transpose(1, 2)
                for part in block.project(flat, self._rotary, tables)
            )
            keys, values = entries.chunk(2, dim=1)
            attended = F.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=block.scale, enable_gqa=heads.grouped
            )
            flat = block.finish(flat, attended.transpose(1, 2).reshape(count * length, heads.query_width))
        return flat.view(count, length, width)


@dataclass(frozen=True, slots=True)
class _Frame:
    """The slots of a token pass: one per row. ``keys``, ``values`` and ``slots`` are views per layer, or empty."""

    positions: Tensor
    rows: Tensor
    length: int
    tables: Tables | None
    mask: Tensor | None
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    slots: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive slots of one row: where they stand in the state and what they see, views per layer."""

    span: slice
    mask: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    slots: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Runs:
    """The slots of a token pass that others have joined: a run per row."""

    positions: Tensor
    rows: Tensor
    tables: Tables | None
    runs: tuple[_Run, ...]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """The slots of a token pass, whoever has joined, for compiled layers."""

    rows: Tensor
    positions: Tensor
    slots: Slots


class TokenPass:
    """New tokens of each row against the cache: one, or several that follow each other where they were proposed.

    Args:
        backbone: the model.
        rotary: position tables, or ``None``.
        cache: keys and values of everything before.
        policy: what exits leave behind in this cache.
        rows: rows of the batch that are running.
        tokens: of each row the newest, which no layer has seen; none where all that is left is to take deep what waits.
        positions: where the last of those stands, or the last that waits.
        tally: counts are charged to these, one per row of the batch.
    """

    def __init__(
        self,
        backbone: Backbone,
        rotary: Rotary | None,
        cache: KVCache,
        policy: KVPolicy,
        rows: list[int],
        tokens: Sequence[Sequence[int]],
        positions: list[int],
        tally: Sequence[Generation],
    ) -> None:
        self._backbone, self._rotary, self._cache, self._policy = backbone, rotary, cache, policy
        self._tally = tally
        self.rows, self.layer, self._positions = list(rows), 0, list(positions)
        self._pauses = tuple(policy.begin(rows, positions))
        # First position of each row's run of slots; the run ends at its last token.
        self._starts = [end - len(run) + 1 for run, end in zip(tokens, positions, strict=True)]
        device = backbone.device
        places = [start + i for run, start in zip(tokens, self._starts, strict=True) for i in range(len(run))]
        newest = [token for run in tokens for token in run]
        self._state = backbone.embed(upload(newest, device), upload(places, device))
        self._frame: _Frame | None = None
        self._joined: _Runs | None = None
        self._compiled: _Compiled | None = None
        self._recorded: RowSlots | None = None

    @property
    def positions(self) -> list[int]:
        """Position of each row's newest token."""
        return self._positions

    def advance(self, layer: int) -> None:
        """Run up to ``layer``, taking along whatever waits on the way."""
        while self.layer < layer:
            stop = self._pause(layer) if self._pauses else layer
            self._run(stop)
            self.layer = stop

    def hidden(self) -> Tensor:
        """Return the newest token's state of each row; undefined for one that has none and that nothing joined yet."""
        if self._starts == self._positions:
            return self._state
        return pick(self._state, [max(end - 1, 0) for end in accumulate(self._lengths())])

    def states(self) -> tuple[Tensor, list[int]]:
        """Return the states of everything the rows carry, ``[slots, hidden_size]``, and how many slots each row has."""
        return self._state, self._lengths()

    def places(self, rows: Collection[int]) -> Places:
        """Return everything that some rows carry, place by place."""
        chosen = [place for place, row in enumerate(self.rows) if row in rows]
        spans, lengths = self._spans(), self._lengths()
        return Places(
            [self.rows[place] for place in chosen for _ in range(lengths[place])],
            [self._starts[place] + i for place in chosen for i in range(lengths[place])],
            self.layer,
            self._state
            if len(chosen) == len(self.rows)
            else torch.cat([self._state[spans[place]] for place in chosen]),
        )

    def runs(self, places: Sequence[int]) -> list[Waiting]:
        """Return all positions that the rows at these places carry: those that joined, and the new token."""
        spans = self._spans()
        return [Waiting(self._starts[place], self._state[spans[place]]) for place in places]

    def leave(self, staying: Sequence[int]) -> None:
        """Keep some rows."""
        if staying:
            spans = self._spans()
            self._state = torch.cat([self._state[spans[place]] for place in staying])
        self._frame = self._joined = self._compiled = self._recorded = None
        self.rows = [self.rows[place] for place in staying]
        self._positions = [self._positions[place] for place in staying]
        self._starts = [self._starts[place] for place in staying]

    def rehearse(self) -> Tensor:
        """Run a copy to the last layer. What it writes lies beyond this layer and is written again or hidden."""
        twin = object.__new__(TokenPass)
        twin.__dict__.update(self.__dict__)
        twin._policy = self._policy.rehearsal()
        twin._starts = list(self._starts)
        twin.advance(self._backbone.num_layers)
        return twin.hidden()

    def _lengths(self) -> list[int]:
        return [p - s + 1 for p, s in zip(self._positions, self._starts, strict=True)]

    def _spans(self) -> list[slice]:
        """Where each row's slots stand in the state."""
        ends = [0, *accumulate(self._lengths())]
        return [slice(begin, end) for begin, end in pairwise(ends)]

    def _pause(self, layer: int) -> int:
        """Let join what waits here, and return where to stop next, at ``layer`` at the latest."""
        if self._pauses[0] == self.layer:
            self._pauses = self._pauses[1:]
            self._join()
        return min([layer, *self._pauses[:1]])

    def _join(self) -> None:
        taken = [self._policy.take(row, self.layer) for row in self.rows]
        if not any(taken):
            return
        parts: list[Tensor] = []
        for place, (span, waiting) in enumerate(zip(self._spans(), taken, strict=True)):
            if waiting is not None:
                parts.append(waiting.hidden)
                self._starts[place] = waiting.start
            parts.append(self._state[span])
        self._state = torch.cat(parts)
        self._joined = self._compiled = self._recorded = None

    def _run(self, stop: int) -> None:
        if not len(self._state):
            return
        self._charge(stop - self.layer)
        if self._run_recorded(stop) or self._run_compiled(stop):
            return
        if self._starts == self._positions:
            self._run_tokens(stop)
        else:
            self._run_spans(stop)

    def _charge(self, layers: int) -> None:
        for row, length in zip(self.rows, self._lengths(), strict=True):
            self._tally[row].layers_executed += layers * length
            self._tally[row].layers_read += layers if length else 0

    def _run_recorded(self, stop: int) -> bool:
        """Run the slots as recorded work; return whether that can be."""
        segments = self._cache.segments
        if segments is None or type(self._policy).visible is not KVPolicy.visible:
            return False
        if self._recorded is None:
            self._recorded = segments.slots(self.rows, self._starts, self._positions)
        if self._recorded is None:
            return False
        self._state = self._recorded.run(self._state, self.layer, stop)
        return True

    def asking(self, test: StateTest, points: Sequence[int]) -> Asking | None:
        """Return the checks of the one row's newest token, to be made on its way; ``None``: somebody has to ask."""
        compiled, states = self._backbone.compiled, test.state
        if compiled is None or len(self.rows) != 1 or type(self._policy).visible is not KVPolicy.visible:
            return None
        if states == "exit" and not self._backbone.shortcuts.keys().isdisjoint(points):
            return None
        return compiled.asking(test, points)

    def advance_asking(self, asking: Asking) -> None:
        """Run to the exit point where a check lets the newest token go, or through all layers."""
        last = self._backbone.num_layers
        while self.layer < last and asking.left is None:
            stop = self._pause(last) if self._pauses else last
            slots = self._compiled_slots()
            self._state, reached = slots.run_asking(self._state, self.layer, stop, asking)
            self._charge(reached - self.layer)
            self.layer = reached

    def _compiled_slots(self) -> Slots:
        assert self._backbone.compiled is not None
        if self._compiled is None:
            rows = [row for row, length in zip(self.rows, self._lengths(), strict=True) for _ in range(length)]
            starts_and_ends = zip(self._starts, self._positions, strict=True)
            positions = [place for start, end in starts_and_ends for place in range(start, end + 1)]
            self._compiled = _Compiled(
                torch.tensor(rows),
                torch.tensor(positions),
                self._backbone.compiled.slots(self._cache, self._rotary, rows, positions),
            )
        return self._compiled.slots

    def _run_compiled(self, stop: int) -> bool:
        """Run the slots, however many a row has, in one call; return whether that can be."""
        if self._backbone.compiled is None:
            return False
        slots = self._compiled_slots()
        assert self._compiled is not None
        if self._policy.visible(self._compiled.rows, self._compiled.positions, stop) is not None:
            return False
        self._state = slots.run(self._state, self.layer, stop)
        return True

    def _run_tokens(self, stop: int) -> None:
        """One slot per row."""
        if self._frame is None:
            self._frame = self._make_frame()
        frame, cache, heads, state = self._frame, self._cache, self._backbone.heads, self._state
        visible = self._policy.visible(frame.rows, frame.positions, stop)
        mask = frame.mask if visible is None else visible[:, None, None, : frame.length]
        for index in range(self.layer, stop):
            block = self._backbone.blocks[index]
            queries, entries = block.project(state, self._rotary, frame.tables)
            if frame.slots:
                frame.slots[index].copy_(entries.transpose(0, 1))
            else:
                cache.write(index, frame.rows, frame.positions, entries)
            if frame.keys:
                keys, values = frame.keys[index], frame.values[index]
            else:
                keys, values = cache.gather(index, frame.rows, frame.length)
            state = block.finish(state, attend(queries, keys, values, mask, heads, block.scale))
        self._state = state

    def _make_frame(self) -> _Frame:
        """Gather what is the same in every segment until a row leaves."""
        device, cache = self._state.device, self._cache
        positions, rows = upload(self._positions, device), upload(self.rows, device)
        length = max(self._positions) + 1
        ragged = min(self._positions) + 1 < length
        first, last = self.rows[0], self.rows[-1]
        neighbours = last - first + 1 == len(self.rows)
        keys, values = cache.views(slice(first, last + 1), length) if neighbours else ((), ())
        return _Frame(
            positions=positions,
            rows=rows,
            length=length,
            tables=None if self._rotary is None else self._rotary.tables(positions),
            mask=cache.mask(positions, length)[:, None, None, :] if ragged else None,
            keys=keys,
            values=values,
            slots=cache.slots(first, length - 1, length) if len(self.rows) == 1 else (),
        )

    def _run_spans(self, stop: int) -> None:
        """A run of consecutive slots per row: linear maps over all of them, attention row by row."""
        if self._joined is None:
            self._joined = self._make_runs()
        joined, heads, state = self._joined, self._backbone.heads, self._state
        visible = self._policy.visible(joined.rows, joined.positions, stop)
        runs = [(run, run.mask if visible is None else visible[run.span, : run.mask.shape[1]]) for run in joined.runs]
        for index in range(self.layer, stop):
            block = self._backbone.blocks[index]
            queries, entries = block.project(state, self._rotary, joined.tables)
            attended = []
            for run, mask in runs:
                run.slots[index].copy_(entries[run.span].transpose(0, 1))
                keys, values = run.keys[index], run.values[index]
                attended.append(attend_span(queries[run.span], keys, values, mask, heads, block.scale))
            state = block.finish(state, attended[0] if len(attended) == 1 else torch.cat(attended))
        self._state = state

    def _make_runs(self) -> _Runs:
        """Gather what is the same in every segment until something joins or leaves."""
        device, cache = self._state.device, self._cache
        ends = [position + 1 for position in self._positions]
        each = [torch.arange(start, end, device=device) for start, end in zip(self._starts, ends, strict=True)]
        positions = torch.cat(each)
        rows = [row for row, length in zip(self.rows, self._lengths(), strict=True) for _ in range(length)]
        runs = tuple(
            _Run(span, cache.mask(places, end), *cache.views(slice(row, row + 1), end), cache.slots(row, start, end))
            for row, start, end, span, places in zip(self.rows, self._starts, ends, self._spans(), each, strict=True)
            if start < end
        )
        return _Runs(
            positions=positions,
            rows=upload(rows, device),
            tables=None if self._rotary is None else self._rotary.tables(positions),
            runs=runs,
        )
