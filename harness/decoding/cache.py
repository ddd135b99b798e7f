"""Keys and values of a batch, preallocated, addressed by (layer, row, position).

What the layers hold that a token skipped is the KV policy's business.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.decoding.blocks import HeadShape
from harness.decoding.kernels.pages import in_large_pages

__all__ = ["KVCache", "attend"]


class KVCache:
    """A dense cache ``[layers, rows, 2 × KV heads, positions, head_dim]``: keys first, then values.

    Args:
        num_layers: decoder layers.
        rows: batch size.
        positions: longest sequence it must hold.
        heads: attention geometry.
        like: a tensor whose dtype and device it takes.

    Attributes:
        entries: the cache.
    """

    def __init__(self, num_layers: int, rows: int, positions: int, heads: HeadShape, like: Tensor) -> None:
        shape = (num_layers, rows, 2 * heads.kv_heads, positions, heads.head_dim)
        self._heads = heads
        # Zeros, not empty: a masked position still enters attention with weight 0, and 0 × NaN is NaN.
        self.entries = in_large_pages(torch.zeros(shape, dtype=like.dtype, device=like.device))
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
