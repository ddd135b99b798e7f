"""Rows on their way through the layers: prompts in prefill, then one pass per token.

A pass advances segment by segment, and some of its rows may leave at any exit point. :class:`PrefixPass` runs whole
sequences: prompts into the cache, and for every token where no cache is kept. :class:`TokenPass` runs one new token per
row against the cache, and earlier tokens that had stopped short, where the KV policy says so.

There are three ways through the layers of a segment: recorded work (:mod:`harness.decoding.graphs`), compiled layers
(:mod:`harness.decoding.kernels.layers`), or :class:`PlainSlots`, torch's own operators. A pass decides which when its
first segment runs, and again only when a row leaves, something joins, or a policy begins to hide positions.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts import KVPolicy, StateTest, Waiting
from harness.decoding.backbone import Backbone, pick, upload
from harness.decoding.blocks import FEW, Rotary
from harness.decoding.cache import KVCache, attend
from harness.decoding.generation import Generation
from harness.decoding.graphs import RecordedCache
from harness.errors import OptionError

if TYPE_CHECKING:
    from harness.decoding.kernels.layers import Asking


class PassState(Protocol):
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


class Pass(PassState, Protocol):
    """Rows on their way through the layers."""

    def advance(self, layer: int) -> None:
        """Run the remaining rows until ``layer`` layers are executed."""

    def leave(self, staying: Sequence[int]) -> None:
        """Keep only the rows with these indices among ``rows``; the others stop here."""


@dataclass(slots=True)
class RowSelection:
    """Hidden states, each as if it were a row's; ``rows`` says which row's it is. Implements :class:`PassState`."""

    rows: list[int]
    positions: list[int]
    layer: int
    state: Tensor
    source: TokenPass

    def hidden(self) -> Tensor:
        """All of them, ``[n, hidden_size]``."""
        return self.state

    def rehearse(self) -> Tensor:
        """Refuse: the last layer is on its way."""
        raise OptionError("a draft rule cannot look ahead while a draft is verified; verified() tells it the tokens.")


COMPILED = 64
"""Tokens of one row that compiled layers read in less time than torch's operators, layer by layer."""


class PrefixPass:
    """Sequences of several rows, right-padded: causal attention never looks at the padding.

    With a cache these are prompts, or the next pieces of them: all layers run, nobody leaves, and what nobody reads is
    not computed. A piece attends to what the cache holds before it: the pieces that were read earlier, or what a prompt
    that began alike has left there. Products over other numbers of rows differ in their last bits, and so do keys and
    values of a prompt that was read in one piece and in several; in bfloat16 that can tip a near-tie.

    Args:
        sequences: tokens of each row, at least one.
        rows: which rows of the batch these are; in ascending order where there is a cache.
        cache: where keys and values are stored, and those of the positions before are; ``None`` keeps none.
        start: position of the first token of every sequence.
        generations: counts are charged to these, one per row of the batch; ``None`` charges none.
    """

    def __init__(
        self,
        backbone: Backbone,
        rotary: Rotary | None,
        sequences: Sequence[Sequence[int]],
        rows: Sequence[int],
        *,
        cache: KVCache | None = None,
        start: int = 0,
        generations: Sequence[Generation] | None = None,
    ) -> None:
        self._backbone, self._rotary, self._cache, self._generations = backbone, rotary, cache, generations
        self.rows, self.layer, self._start = list(rows), 0, start
        device, self._lengths = backbone.device, [len(tokens) for tokens in sequences]
        self._longest = max(self._lengths)
        neighbours = rows[-1] - rows[0] + 1 == len(rows)
        self._cached_rows = slice(rows[0], rows[-1] + 1) if cache is None or neighbours else upload(rows, device)
        padded = upload([[*tokens, *[0] * (self._longest - len(tokens))] for tokens in sequences], device)
        positions = torch.arange(start, start + self._longest, device=device)
        self._slots = positions.repeat(len(rows))
        self._state = backbone.embed(padded.flatten(), self._slots)  # [rows × longest, hidden_size]
        self._tables = None if rotary is None else rotary.tables(self._slots)
        # As numbers, once: torch would make them of booleans in every layer.
        self._mask = None if cache is None or not start else cache.mask(positions, start + self._longest)
        self._ends = self._find_ends()

    @property
    def positions(self) -> list[int]:
        """Position of each row's last token."""
        return [self._start + length - 1 for length in self._lengths]

    def advance(self, layer: int) -> None:
        """Run everything up to ``layer``."""
        self._charge(layer - self.layer)
        self._state = self._run(layer)
        self.layer = layer

    def hidden(self) -> Tensor:
        """Return the state of each row's last token."""
        return self._state[self._ends]

    def states(self) -> Tensor:
        """Return the hidden states of every token, ``[n, longest, hidden_size]``; undefined at padding."""
        return self._state.view(len(self.rows), self._longest, -1)

    def leave(self, staying: Sequence[int]) -> None:
        """Keep some rows."""
        self._state = pick(self.states(), staying).flatten(0, 1)
        self.rows = [self.rows[index] for index in staying]
        self._lengths = [self._lengths[index] for index in staying]
        self._ends = self._find_ends()
        if self._tables is not None:  # which are the same for every row
            self._tables = self._tables[0][: len(self._state)], self._tables[1][: len(self._state)]

    def rehearse(self) -> Tensor:
        """Run a copy to the last layer."""
        self._charge(self._backbone.num_layers - self.layer)
        return self._run(self._backbone.num_layers)[self._ends]

    def fill(self) -> None:
        """Store keys and values of all layers, and compute nothing else: more of the prompt follows."""
        last = self._backbone.num_layers - 1
        self.advance(last)
        self._keep(last, self._by_head(self._backbone.blocks[last].fill(self._state, self._rotary, self._tables)))

    def read(self) -> Tensor:
        """Store keys and values of all layers, and return the state of each row's last token, ``[n, hidden_size]``.

        Behind the last layer only these are wanted, so that of this layer the other tokens need keys and values alone.
        """
        assert self._cache is not None
        if len(self._state) <= FEW:  # they cost what one costs
            self.advance(self._backbone.num_layers)
            return self.hidden()
        self.fill()
        block, state, slots = self._backbone.blocks[-1], self.hidden(), self._slots[self._ends]
        tables = None if self._rotary is None else self._rotary.tables(slots)
        queries, _ = block.project(state, self._rotary, tables)
        reach, mask = self._start + self._longest, None
        if min(self._lengths) < self._longest:
            mask = self._cache.mask(slots, reach)[:, None, None, :]
        keys, values = self._cache.gather(self._backbone.num_layers - 1, self._cached_rows, reach)
        return block.finish(state, attend(queries.unsqueeze(1), keys, values, mask, self._backbone.heads, block.scale))

    def _find_ends(self) -> Tensor:
        ends = [row * self._longest + length - 1 for row, length in enumerate(self._lengths)]
        return upload(ends, self._backbone.device)

    def _charge(self, layers: int) -> None:
        if self._generations is not None:
            for row in self.rows:
                self._generations[row].layers_executed += layers

    def _run(self, stop: int) -> Tensor:
        heads, state, compiled = self._backbone.heads, self._state, self._backbone.compiled
        if compiled is not None and self._cache is not None and len(self.rows) == 1 and self._longest <= COMPILED:
            places = range(self._start, self._start + self._longest)
            slots = compiled.slots(self._cache, self._rotary, self.rows * self._longest, places)
            return slots.run(state, self.layer, stop)
        for index in range(self.layer, stop):
            block = self._backbone.blocks[index]
            queries, entries = block.project(state, self._rotary, self._tables)
            keys, values = self._keep(index, self._by_head(entries))
            attended = F.scaled_dot_product_attention(
                self._by_head(queries), keys, values, attn_mask=self._mask, is_causal=self._mask is None,
                scale=block.scale, enable_gqa=heads.grouped,
            )  # fmt: skip
            state = block.finish(state, attended.transpose(1, 2).reshape(-1, heads.query_width))
        return state

    def _keep(self, layer: int, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Store entries ``[n, 2 KV, longest, D]`` if there is a cache; return keys and values of all up to here."""
        if self._cache is not None:
            self._cache.write_prompt(layer, self._cached_rows, self._start, entries)
            if self._start:
                return self._cache.gather(layer, self._cached_rows, self._start + self._longest)
        keys, values = entries.chunk(2, dim=1)
        return keys, values

    def _by_head(self, flat: Tensor) -> Tensor:
        """``[rows × longest, heads, D]`` → ``[rows, heads, longest, D]``."""
        return flat.view(len(self.rows), self._longest, -1, self._backbone.heads.head_dim).transpose(1, 2)


class SlotRunner(Protocol):
    """The slots of a token pass, each a token at its position in its row, on one of the ways through the layers."""

    def run(self, state: Tensor, first: int, last: int) -> Tensor:
        """Return the states ``[slots, hidden_size]`` after layers ``first`` to ``last - 1``; keeps keys and values."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Slots that attend together: one of each row, or runs of one row. Views of the cache are per layer, or empty."""

    span: slice | None  # of the slots; all of them
    rows: int
    length: int  # positions they may see, at most
    mask: Tensor | None  # [rows, 1, slots of a row, length]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    written: tuple[Tensor, ...]


class PlainSlots:
    """Runs of consecutive tokens, one per row or all of one, layer by layer: linear maps over all, attention by row.

    Args:
        cache: keys and values of everything before, which those of these tokens join.
        starts: position of each run's first token.
        ends: of its last; one before the first where a row has none.

    Attributes:
        visible: positions that each may attend to, ``[slots, length or more]``; ``None`` for all up to its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        rotary: Rotary | None,
        cache: KVCache,
        rows: Sequence[int],
        starts: Sequence[int],
        ends: Sequence[int],
    ) -> None:
        self._backbone, self._rotary, self._cache = backbone, rotary, cache
        runs = [(row, start, end) for row, start, end in zip(rows, starts, ends, strict=True) if start <= end]
        self._rows = upload([row for row, start, end in runs for _ in range(start, end + 1)], backbone.device)
        self._positions = upload([at for _, start, end in runs for at in range(start, end + 1)], backbone.device)
        self._tables = None if rotary is None else rotary.tables(self._positions)
        self.visible: Tensor | None = None
        if len(runs) > 1 and len({row for row, _, _ in runs}) == 1:  # attend once, each to what is before it
            self._groups = [self._group(runs, slice(0, len(self._positions)))]
        elif all(start == end for _, start, end in runs):
            self._groups = [self._group(runs, None)]
        else:
            places = pairwise([0, *accumulate(end - start + 1 for _, start, end in runs)])
            self._groups = [self._group([run], slice(*place)) for run, place in zip(runs, places, strict=True)]

    def _group(self, runs: Sequence[tuple[int, int, int]], span: slice | None) -> _Group:
        (first, start, _), (last, _, end) = runs[0], runs[-1]
        length, rows = max(end for _, _, end in runs) + 1, len({row for row, _, _ in runs})
        cache, mask = self._cache, None
        keys: tuple[Tensor, ...] = ()
        values: tuple[Tensor, ...] = ()
        if start < end or min(end for _, _, end in runs) + 1 < length:
            own = self._positions if span is None else self._positions[span]
            mask = cache.mask(own, length).view(rows, 1, -1, length)
        if last - first + 1 == rows:
            keys, values = cache.views(slice(first, last + 1), length)
        written = cache.slots(first, start, end + 1) if len(runs) == 1 else ()
        return _Group(span, rows, length, mask, keys, values, written)

    def run(self, state: Tensor, first: int, last: int) -> Tensor:
        """Return the states ``[slots, hidden_size]`` after layers ``first`` to ``last - 1``; keeps keys and values."""
        heads, cache, rotary, tables = self._backbone.heads, self._cache, self._rotary, self._tables
        groups = [(group, self._mask_of(group)) for group in self._groups]
        for index in range(first, last):
            block = self._backbone.blocks[index]
            queries, entries = block.project(state, rotary, tables)
            attended = []
            for group, mask in groups:
                if group.span is None:
                    own, new = queries.unsqueeze(1), entries
                else:
                    own, new = queries[group.span].unsqueeze(0), entries[group.span]
                if group.written:
                    group.written[index].copy_(new.transpose(0, 1))
                else:
                    cache.write(index, self._rows, self._positions, new)
                if group.keys:
                    keys, values = group.keys[index], group.values[index]
                else:
                    keys, values = cache.gather(index, self._rows, group.length)
                attended.append(attend(own, keys, values, mask, heads, block.scale))
            state = block.finish(state, attended[0] if len(attended) == 1 else torch.cat(attended))
        return state

    def _mask_of(self, group: _Group) -> Tensor | None:
        if self.visible is None:
            return group.mask
        seen = self.visible if group.span is None else self.visible[group.span]
        return seen[:, : group.length].reshape(group.rows, 1, -1, group.length)


class TokenPass:
    """New tokens of each row against the cache: one, or several that follow each other where they were proposed.

    Args:
        tokens: of each row the newest, which no layer has seen; none where all that is left is to take deep what waits.
        positions: where the last of those stands, or the last that waits.
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
        generations: Sequence[Generation],
    ) -> None:
        self._backbone, self._rotary, self._cache, self._policy = backbone, rotary, cache, policy
        self._generations = generations
        self.rows, self.layer, self._positions = list(rows), 0, list(positions)
        self._pauses = tuple(policy.begin(rows, positions))
        # First position of each row's run of slots; the run ends at its last token.
        self._starts = [end - len(run) + 1 for run, end in zip(tokens, positions, strict=True)]
        device = backbone.device
        places = [start + i for run, start in zip(tokens, self._starts, strict=True) for i in range(len(run))]
        newest = [token for run in tokens for token in run]
        self._state = backbone.embed(upload(newest, device), upload(places, device))
        self._hides = type(policy).visible is not KVPolicy.visible
        self._asking: dict[int, Asking] = {}
        self._runner: SlotRunner | None = None

    @property
    def positions(self) -> list[int]:
        """Position of each row's newest token."""
        return self._positions

    def ask(self, tests: Mapping[int, tuple[StateTest, Sequence[int]]]) -> dict[int, Asking] | None:
        """Let the layers make the checks of some rows' newest tokens, before the first of them runs.

        :meth:`advance` then ends at the exit point where a check reaches its threshold; called again, it goes on.

        Args:
            tests: rows → test and exit points.

        Returns:
            Rows → checks; ``None`` where somebody has to ask.
        """
        compiled = self._backbone.compiled
        if compiled is None or self._hides:
            return None
        found: dict[int, Asking] = {}
        for row, (test, points) in tests.items():
            through = test.state == "exit" and not self._backbone.shortcuts.keys().isdisjoint(points)
            asking = None if through else compiled.asking(test, points)
            if asking is None:
                return None
            found[row] = asking
        self._asking = found
        return found

    def advance(self, layer: int) -> None:
        """Run up to ``layer``, taking along whatever waits on the way."""
        while self.layer < layer:
            stop = self._pause(layer) if self._pauses else layer
            if len(self._state):
                stop = self._run(stop)
            self.layer = stop
            if any(one.left is not None for one in self._asking.values()):
                return

    def hidden(self) -> Tensor:
        """Return the newest token's state of each row; undefined for one that has none and that nothing joined yet."""
        if self._starts == self._positions:
            return self._state
        return pick(self._state, [max(end - 1, 0) for end in accumulate(self._lengths())])

    def states(self) -> tuple[Tensor, list[int]]:
        """Return the states of everything the rows carry, ``[slots, hidden_size]``, and how many slots each row has."""
        return self._state, self._lengths()

    def select(self, rows: Collection[int]) -> RowSelection:
        """Return everything that some rows carry, slot by slot."""
        chosen = [index for index, row in enumerate(self.rows) if row in rows]
        spans, lengths = self._spans(), self._lengths()
        return RowSelection(
            [self.rows[index] for index in chosen for _ in range(lengths[index])],
            [self._starts[index] + i for index in chosen for i in range(lengths[index])],
            self.layer,
            self._state
            if len(chosen) == len(self.rows)
            else torch.cat([self._state[spans[index]] for index in chosen]),
            self,
        )

    def runs(self, indices: Sequence[int]) -> list[Waiting]:
        """Return all positions that some of the rows carry: those that joined, and the new token."""
        spans = self._spans()
        return [Waiting(self._starts[index], self._state[spans[index]]) for index in indices]

    def leave(self, staying: Sequence[int]) -> None:
        """Keep some rows."""
        if staying:
            spans = self._spans()
            self._state = torch.cat([self._state[spans[index]] for index in staying])
        self._runner = None
        self.rows = [self.rows[index] for index in staying]
        self._asking = {row: self._asking[row] for row in self.rows if row in self._asking}
        self._positions = [self._positions[index] for index in staying]
        self._starts = [self._starts[index] for index in staying]

    def through(self, layers: Sequence[int]) -> None:
        """Run the new tokens through these layers alone, 0-based, as if the model had no others; none is left then."""
        for _, run in groupby(enumerate(layers), lambda place: place[1] - place[0]):
            consecutive = [layer for _, layer in run]
            self.layer = consecutive[0]
            self.advance(consecutive[-1] + 1)
        self.layer = self._backbone.num_layers

    def beside(self, layers: Sequence[int], rows: Sequence[int], positions: Sequence[int], state: Tensor) -> Tensor:
        """Return states ``[n, hidden_size]`` after these layers, as if each stood alone behind what the cache holds.

        Args:
            layers: which, 0-based.
            rows: of the cache, that each belongs to.
            positions: where each stands; nothing is kept there.
            state: ``[n, hidden_size]``.
        """
        device, heads, reach = self._backbone.device, self._backbone.heads, max(positions)
        index, places = upload(rows, device), upload(positions, device)
        tables = None if self._rotary is None else self._rotary.tables(places)
        before = self._cache.mask(places - 1, reach)
        mask = F.pad(before, (0, 1)).view(len(rows), 1, 1, -1)  # and itself
        for layer in layers:
            block = self._backbone.blocks[layer]
            queries, entries = block.project(state, self._rotary, tables)
            held = torch.cat((self._cache.entries[layer, index, :, :reach], entries.unsqueeze(2)), dim=2)
            keys, values = held.chunk(2, dim=1)
            state = block.finish(state, attend(queries.unsqueeze(1), keys, values, mask, heads, block.scale))
        for row in set(rows):
            self._generations[row].layers_executed += len(layers) * rows.count(row)
            self._generations[row].layers_read += len(layers)
        return state

    def rehearse(self) -> Tensor:
        """Run a copy to the last layer. What it writes lies beyond this layer and is written again or hidden."""
        twin = copy.copy(self)
        twin._policy, twin._starts = self._policy.rehearsal(), list(self._starts)
        if self._asking:
            twin._asking, twin._runner = {}, None
        twin.advance(self._backbone.num_layers)
        return twin.hidden()

    def _lengths(self) -> list[int]:
        return [end - start + 1 for start, end in zip(self._starts, self._positions, strict=True)]

    def _spans(self) -> list[slice]:
        """Where each row's slots stand in the state."""
        ends = [0, *accumulate(self._lengths())]
        return [slice(begin, end) for begin, end in pairwise(ends)]

    def _slots(self) -> tuple[list[int], list[int]]:
        runs = list(zip(self.rows, self._starts, self._positions, strict=True))
        rows = [row for row, start, end in runs for _ in range(start, end + 1)]
        return rows, [position for _, start, end in runs for position in range(start, end + 1)]

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
        for index, (span, waiting) in enumerate(zip(self._spans(), taken, strict=True)):
            if waiting is not None:
                parts.append(waiting.hidden)
                self._starts[index] = waiting.start
            parts.append(self._state[span])
        self._state = torch.cat(parts)
        self._runner = None

    def _run(self, stop: int) -> int:
        visible: Tensor | None = None
        if self._hides:
            rows, positions = (upload(each, self._backbone.device) for each in self._slots())
            visible = self._policy.visible(rows, positions, stop)
        if visible is not None and not isinstance(self._runner, PlainSlots):
            self._runner = self._plain()
        elif self._runner is None:
            self._runner = self._choose()
        if isinstance(self._runner, PlainSlots):
            self._runner.visible = visible
        self._state = self._runner.run(self._state, self.layer, stop)
        stop = next((one.left for one in self._asking.values() if one.left is not None), stop)
        layers = stop - self.layer
        for row, length in zip(self.rows, self._lengths(), strict=True):
            self._generations[row].layers_executed += layers * length
            self._generations[row].layers_read += layers if length else 0
        return stop

    def _choose(self) -> SlotRunner:
        if isinstance(self._cache, RecordedCache) and not self._hides:
            recorded = self._cache.segments.slots(self.rows, self._starts, self._positions)
            if recorded is not None:
                return recorded
        if self._backbone.compiled is not None:
            return self._backbone.compiled.slots(self._cache, self._rotary, *self._slots(), self._asking)
        return self._plain()

    def _plain(self) -> PlainSlots:
        return PlainSlots(self._backbone, self._rotary, self._cache, self.rows, self._starts, self._positions)
