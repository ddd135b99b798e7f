"""Keys and values of a batch, preallocated, addressed by (layer, row, position).

What the layers hold that a token skipped is the KV policy's business. :class:`KeptPrompts` knows whose prompts are in
the rows: of one that begins alike only the rest is to be read. It stores nothing but tokens: keys and values stay where
they were computed, in the row of the request that left or that still runs. Which positions count is the batch's to say
(:data:`harness.contracts.Keep`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.decoding.blocks import HeadShape
from harness.decoding.kernels import in_large_pages, zeros

_ROOMY = 1 << 20  # bytes of one head's keys, from which most are room for longer texts, and large pages would fill it


class KVCache:
    """A dense cache ``[layers, rows, 2 × KV heads, positions, head_dim]``: keys first, then values.

    Args:
        positions: longest sequence it must hold.
        like: a tensor whose dtype and device it takes.
    """

    def __init__(self, num_layers: int, rows: int, positions: int, heads: HeadShape, like: Tensor) -> None:
        shape = (num_layers, rows, 2 * heads.kv_heads, positions, heads.head_dim)
        self._heads = heads
        # Zeros, not empty: a masked position still enters attention with weight 0, and 0 × NaN is NaN.
        self.entries = zeros(shape, like)
        if positions * heads.head_dim * like.element_size() < _ROOMY:
            self.entries = in_large_pages(self.entries)
        self._positions = torch.arange(positions, device=like.device)

    @property
    def keys(self) -> Tensor:
        """Keys, ``[layers, rows, KV heads, positions, head_dim]``."""
        return self.entries[:, :, : self._heads.kv_heads]

    @property
    def values(self) -> Tensor:
        """Values, shaped as :attr:`keys`."""
        return self.entries[:, :, self._heads.kv_heads :]

    def write_prompt(self, layer: int, rows: slice | Tensor, start: int, entries: Tensor) -> None:
        """Store prompts of ``rows``, ``[n, 2 KV, length, head_dim]``, from position ``start`` on."""
        self.entries[layer, rows, :, start : start + entries.shape[2]] = entries

    def copy(self, source: int, row: int, length: int) -> None:
        """Store in a row what another one holds at its first ``length`` positions."""
        self.entries[:, row, :, :length] = self.entries[:, source, :, :length]

    def wipe(self, row: int, start: int, end: int) -> None:
        """Fill positions of a row with zeros."""
        self.entries[:, row, :, start:end] = 0

    def write(self, layer: int, rows: Tensor, positions: Tensor, entries: Tensor) -> None:
        """Store slots ``[n, 2 KV, head_dim]`` at ``rows``, ``positions``, both ``[n]``."""
        self.entries[layer, rows, :, positions] = entries

    def visible(self, positions: Tensor, length: int) -> Tensor:
        """Return which of the first positions slots at ``positions`` ``[n]`` may attend to, ``[n, length]`` bool."""
        return self._positions[:length] <= positions.unsqueeze(1)

    def mask(self, positions: Tensor, length: int) -> Tensor:
        """Return what attention adds to the scores of slots at ``positions`` ``[n]``: 0 or −∞, ``[n, length]``.

        Attention makes this of a bool mask anyway, in every layer.
        """
        hidden = ~self.visible(positions, length)
        return torch.zeros(hidden.shape, dtype=self.entries.dtype, device=hidden.device).masked_fill_(hidden, -math.inf)

    def views(self, rows: slice, length: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return keys and values of neighbouring rows as views, one per layer, cut in one go.

        Cutting them layer by layer would cost as much as a norm, each time on cold caches.
        """
        reach = self.entries[:, rows, :, :length]
        return reach[:, :, : self._heads.kv_heads].unbind(0), reach[:, :, self._heads.kv_heads :].unbind(0)

    def gather(self, layer: int, rows: slice | Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of some rows: copies of scattered ones ``[n]``, views of neighbours."""
        keys, values = self.entries[layer, rows, :, :length].chunk(2, dim=1)
        return keys, values

    def slots(self, row: int, start: int, end: int) -> tuple[Tensor, ...]:
        """Return consecutive positions of a row as views ``[2 KV, n, head_dim]``, one per layer, to copy into."""
        return self.entries[:, row, :, start:end].unbind(0)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, heads: HeadShape, scale: float
) -> Tensor:
    """Attend with the last positions of some rows: ``[n, k, H, D]`` → ``[n × k, H × D]``.

    Args:
        queries: as many slots of each row.
        keys: ``[n, KV, length, D]``.
        values: the same shape.
        mask: ``[n, 1, k, length]``, bool or what is added to the scores; ``None`` when all positions are visible.
        heads: attention geometry.
        scale: factor on query·key.
    """
    out = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys, values, attn_mask=mask, scale=scale, enable_gqa=heads.grouped
    )
    return out.transpose(1, 2).reshape(-1, heads.query_width)


FEWEST = 16
"""Tokens that must be alike: reading fewer takes no time, and read anew they are computed as they are alone."""


@dataclass(frozen=True, slots=True)
class _Kept:
    owner: str
    tokens: Sequence[int]  # of the prompt, and of its completion where that is kept
    length: int  # of them, from the first on, that are in the cache

    def shared(self, owner: str, prompt: Sequence[int]) -> int:
        """Return how many tokens at the beginning of a prompt are in the cache; its last one is always to be read."""
        if owner != self.owner:
            return 0
        limit = min(self.length, len(prompt) - 1)
        pairs = zip(self.tokens[:limit], prompt[:limit], strict=True)
        same = next((place for place, (kept, token) in enumerate(pairs) if kept != token), limit)
        return same if same >= FEWEST else 0


class KeptPrompts:
    """The prompts in the rows of a cache, the one that was begun longest ago first.

    Args:
        max_rows: free rows whose prompts are kept; with 0 none is, and those of running rows are not shared either.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._kept: dict[int, _Kept] = {}

    def hold(self, row: int, owner: str | None, tokens: Sequence[int], length: int) -> None:
        """A row holds the first ``length`` of these tokens, and nothing else that counts; without an owner, nothing."""
        if self._max_rows and owner is not None:
            self._kept[row] = _Kept(owner, tokens, length)
        else:
            self.forget(row)

    def __contains__(self, row: int) -> bool:
        return row in self._kept

    def forget(self, row: int) -> None:
        """A row holds nothing that may be used."""
        self._kept.pop(row, None)

    def find(self, owner: str | None, prompt: Sequence[int], row: int) -> tuple[int, int]:
        """Return which row holds most of a prompt's beginning, and how many tokens; where no other has more, ``row``.

        Prompts of another owner are never found, however alike.
        """
        best, longest = row, 0
        if owner is not None:
            for other in sorted(self._kept, key=lambda other: other != row):
                length = self._kept[other].shared(owner, prompt)
                if length > longest:
                    best, longest = other, length
        return best, longest

    def row_for(self, owner: str | None, prompt: Sequence[int], free: Collection[int]) -> int:
        """Return the free row that a prompt should take, and forget what is too much.

        The one that holds its beginning, unless that is less than half of what would be lost with it: then the prompt
        takes one that holds nothing, or else the one that was begun longest ago, and copies what is alike.
        """
        idle = [row for row in self._kept if row in free]
        for row in idle[: max(0, len(idle) - self._max_rows)]:
            self.forget(row)
        emptiest = min(free, key=self._age)
        found, length = self.find(owner, prompt, emptiest)
        if length and found in free and 2 * length >= self._kept[found].length:
            return found
        return emptiest

    def _age(self, row: int) -> tuple[int, int]:
        """Order of rows to be given up: those that hold nothing, by number, then the others by when they were begun."""
        order = list(self._kept)
        return (order.index(row) + 1, row) if row in self._kept else (0, row)
