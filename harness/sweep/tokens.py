"""Traced tokens as exits saw them: columns computed on first use, and shared by all operating points.

Memory holds one part of a trace at a time: 4096 tokens, 85 MB for SmolLM2-135M once a strategy has asked for every
exit's hidden state.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from zlib import crc32

import torch
from torch import Tensor

from harness.contracts import HeadChoice
from harness.decoding.blocks import Linear
from harness.decoding.readings import HeadReading, Heads
from harness.training.traces.store import Traces

COLUMNS = ("hidden", "top", "top1", "top2", "entropy", "final", "position", "document", "input")
PART = 4096
READ = 256
"""Tokens that a cheap head reads at a time: some heads make logits of the whole vocabulary."""

Looks = frozenset[tuple[str, int]]
"""Key of something a computation reads: (quantity, exit layer)."""


@dataclass(eq=False)
class TracedTokens:
    """Some tokens of a trace.

    Attributes:
        exit_points: layers of the exits.
        shards: columns as they lie on disk, each with the selected rows, ``[k]`` int64.
        shortcuts: exit layer → shortcut; empty with the shared head.
        documents: key of every document of the trace.
        generated: the tokens were the model's own, each document's first one yielded by its context; else they are the
            documents', read one by one.
        seed: of random strategies.
        heads: the model's cheap heads; ``None`` where no strategy declares one, and the model is not loaded.
        memo: what strategies computed for any of their settings, and what that read.
    """

    exit_points: tuple[int, ...]
    shards: Sequence[tuple[Mapping[str, Tensor], Tensor]]
    shortcuts: Mapping[int, Linear]
    documents: Sequence[str]
    generated: bool
    seed: int = 0
    heads: Heads | None = None
    memo: dict[Hashable, tuple[Tensor, Looks]] = field(default_factory=dict)
    _made: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _read: dict[tuple[HeadChoice, int], dict[str, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.final)

    @cached_property
    def final(self) -> Tensor:
        """Token of the last layer, ``[n]`` int64."""
        return self._gather("final").long()

    @cached_property
    def input(self) -> Tensor:
        """Token that was read, ``[n]`` int64."""
        return self._gather("input").long()

    @cached_property
    def position(self) -> Tensor:
        """Position of each token, ``[n]`` int64."""
        return self._gather("position").long()

    @cached_property
    def document(self) -> Tensor:
        """Number of each token's document, ``[n]`` int64."""
        return self._gather("document").long()

    @cached_property
    def rows(self) -> Tensor:
        """0…n−1: each token is a row of its own."""
        return torch.arange(len(self))

    @cached_property
    def generated_before(self) -> list[list[int]]:
        """Tokens generated before each token was; only where ``generated``."""
        found = []
        for shard, rows in self.shards:
            document, read = (
                shard["document"].tolist(),
                shard["input"].tolist(),
            )  # documents ascend, and end with shards
            found += [read[bisect_left(document, document[row]) + 1 : row + 1] for row in rows.tolist()]
        return found

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """One per token, from its document and position: the same in any part of the trace."""
        places = zip(self.document.tolist(), self.position.tolist(), strict=True)
        return tuple(self.seed + crc32(f"{self.documents[number]} {position}".encode()) for number, position in places)

    def top(self, layer: int) -> Tensor:
        """Token of an exit, ``[n]`` int64."""
        return self._once("top", layer, lambda: self._gather("top", layer).long())

    def number(self, column: str, layer: int) -> Tensor:
        """Return ``top1``, ``top2`` or ``entropy`` of an exit, ``[n]`` float32."""
        return self._once(column, layer, lambda: self._gather(column, layer).float())

    def hidden(self, layer: int) -> Tensor:
        """Hidden state at an exit, ``[n, hidden_size]`` float32."""
        return self._once("hidden", layer, lambda: self._gather("hidden", layer).float())

    def exit_state(self, layer: int) -> Tensor:
        """Hidden state through the exit's shortcut, ``[n, hidden_size]`` float32."""
        if layer not in self.shortcuts:
            return self.hidden(layer)
        return self._once("exit_state", layer, lambda: self.shortcuts[layer](self.hidden(layer)))

    def by_head(self, head: HeadChoice, layer: int) -> dict[str, Tensor]:
        """Return what a cheap head says at an exit: ``top``, ``top1``, ``top2``, ``entropy``, ``[n]`` each."""
        found = self._read.get((head, layer))
        if found is None:
            assert self.heads is not None
            parts = [
                _columns(HeadReading.of(self.heads.read(head, states)))
                for states in torch.split(self.exit_state(layer), READ)
            ]
            found = self._read[head, layer] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return found

    def _gather(self, column: str, layer: int | None = None) -> Tensor:
        """Copy the selected rows of a column, of one exit if a layer is given."""
        parts = []
        for shard, rows in self.shards:
            whole = shard[column]
            parts.append(whole[rows] if layer is None else whole[:, self.exit_points.index(layer)][rows])
        return torch.cat(parts)

    def _once(self, what: str, layer: int, make: Callable[[], Tensor]) -> Tensor:
        found = self._made.get((what, layer))
        if found is None:
            found = self._made[what, layer] = make()
        return found


def _columns(reading: HeadReading) -> dict[str, Tensor]:
    return {
        "top": reading.top_token,
        "top2": reading.second_probability,
        "top1": reading.top_probability,
        "entropy": reading.entropy,
    }


def read_tokens(
    traces: Traces,
    wanted: Tensor,
    shortcuts: Mapping[int, Linear],
    *,
    seed: int = 0,
    part: int = PART,
    heads: Heads | None = None,
) -> Iterator[TracedTokens]:
    """Yield the wanted tokens of a trace, about ``part`` at a time.

    Args:
        traces: where they are.
        wanted: which rows, ``[n]`` bool.
        shortcuts: exit layer → shortcut, float32.
        seed: of random strategies.
        part: most tokens at once.
        heads: the model's cheap heads, where a strategy reads one.
    """
    keys = [str(document["key"]) for document in traces.documents]
    generated = bool(traces.index.get("new_tokens"))
    waiting: list[tuple[Mapping[str, Tensor], Tensor]] = []
    count = start = 0
    for shard in traces.shards(*COLUMNS):
        size = len(shard["final"])
        rows = wanted[start : start + size].nonzero().squeeze(1)
        start += size
        while len(rows):
            taken, rows = rows[: part - count], rows[part - count :]
            waiting.append((shard, taken))
            count += len(taken)
            if count == part:
                yield TracedTokens(traces.exit_points, waiting, shortcuts, keys, generated, seed, heads)
                waiting, count = [], 0
    if waiting:
        yield TracedTokens(traces.exit_points, waiting, shortcuts, keys, generated, seed, heads)
