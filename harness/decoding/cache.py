"""Keys and values of a batch, preallocated, addressed by (layer, row, position).

Positions a token skipped hold whatever was there before; :class:`KVCache` knows how deep each
position goes, so that the ``skip`` policy can mask the holes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.decoding.blocks import HeadShape

__all__ = ["KVCache"]


class KVCache:
    """A dense cache ``[layers, rows, KV heads, positions, head_dim]`` for keys and one for values.

    Args:
        num_layers: decoder layers.
        rows: batch size.
        positions: longest sequence it must hold.
        heads: attention geometry.
        like: a tensor whose dtype and device it takes.
    """

    def __init__(self, num_layers: int, rows: int, positions: int, heads: HeadShape, like: Tensor) -> None:
        shape = (num_layers, rows, heads.kv_heads, positions, heads.head_dim)
        self._heads = heads
        # Zeros, not empty: a masked position still enters attention with weight 0, and 0 × NaN is NaN.
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.depth = torch.zeros((rows, positions), dtype=torch.int64, device=like.device)
        self._positions = torch.arange(positions, device=like.device)

    def write_prompt(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store a whole prompt pass, ``[rows, KV, length, head_dim]``, from position 0 on."""
        length = keys.shape[2]
        self.keys[layer, :, :, :length] = keys
        self.values[layer, :, :, :length] = values

    def write(self, layer: int, rows: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store slots: keys and values ``[n, KV, head_dim]`` at ``rows``, ``positions``, both ``[n]``."""
        self.keys[layer, rows, :, positions] = keys
        self.values[layer, rows, :, positions] = values

    def write_one(self, layer: int, row: int, position: int, keys: Tensor, values: Tensor) -> None:
        """Store a single slot, ``[1, KV, head_dim]``, without index tensors."""
        self.keys[layer, row, :, position] = keys[0]
        self.values[layer, row, :, position] = values[0]

    def visible(self, rows: Tensor, positions: Tensor, layers: int | None) -> Tensor:
        """Return which cached positions a slot may attend to, ``[n, longest]`` bool.

        Args:
            rows: rows of the slots, ``[n]``.
            positions: their positions, ``[n]``; nothing later is visible.
            layers: hide positions that hold fewer layers than this; ``None`` hides none.
        """
        length = int(positions.max()) + 1
        mask = self._positions[:length] <= positions.unsqueeze(1)
        return mask if layers is None else mask & (self.depth[rows, :length] >= layers)

    def attend(
        self, layer: int, queries: Tensor, rows: Tensor | slice, length: int, mask: Tensor | None, scale: float
    ) -> Tensor:
        """One query per row: ``[n, H, D]`` → ``[n, H * D]``.

        Args:
            layer: 0-based layer.
            queries: one slot per row.
            rows: which rows: a slice (no copy) where they are neighbours, else ``[n]`` indices.
            length: cached positions to look at.
            mask: ``[n, length]`` bool, or ``None`` when all are visible.
            scale: factor on query·key.
        """
        heads = self._heads
        keys, values = self.keys[layer, rows, :, :length], self.values[layer, rows, :, :length]
        # Query heads of one group become the "sequence" of their key/value head: no repeat of K and V.
        grouped = queries.reshape(-1, heads.kv_heads, heads.group, heads.head_dim)
        allowed = None if mask is None else mask[:, None, None, :].expand(-1, heads.kv_heads, heads.group, -1)
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=allowed, scale=scale)
        return out.reshape(-1, heads.query_width)

    def attend_span(self, layer: int, queries: Tensor, row: int, start: int, scale: float) -> Tensor:
        """Consecutive positions ``start``… of one row, causal: ``[n, H, D]`` → ``[n, H * D]``."""
        heads = self._heads
        count = queries.shape[0]
        end = start + count
        keys, values = self.keys[layer, row, None, :, :end], self.values[layer, row, None, :, :end]
        mask = self._positions[:end] <= self._positions[start:end].unsqueeze(1)
        out = F.scaled_dot_product_attention(
            queries.transpose(0, 1).unsqueeze(0), keys, values, attn_mask=mask, scale=scale, enable_gqa=heads.group > 1
        )
        return out[0].transpose(0, 1).reshape(count, heads.query_width)
