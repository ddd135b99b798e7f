"""Fill keys and values of skipped layers from hidden states, for KV policies that do (``propagate``).

CALM (Schuster 2022, arXiv 2207.07061, section 3): a token that exits after layer e leaves, for every
deeper layer, the keys and values that layer would compute from the exit hidden state. Only the norm
and the key and value projections run. Norms of one vector differ between layers in gain and bias
alone, and rotation is the same in all of them, so both are done once for all layers; what remains
is one matrix per layer, read at memory bandwidth; compiled layers do it in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts import LinearMap
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import LayerNorm, RMSNorm, Rotary
from harness.decoding.cache import KVCache
from harness.decoding.transfer import upload

__all__ = ["KVFiller"]


class KVFiller:
    """Writes what exited tokens leave behind.

    Args:
        backbone: the model whose layers are filled.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        norms = [block.attention_norm for block in backbone.blocks]
        first = backbone.blocks[0]
        self._joint = first.key_norm is None and not first.post_norm and all(n.weight is not None for n in norms)
        if self._joint:
            self._gain = torch.stack([cast("Tensor", norm.weight) for norm in norms]).unsqueeze(1)
            biases = [norm.bias for norm in norms if isinstance(norm, LayerNorm) and norm.bias is not None]
            self._shift = torch.stack(biases).unsqueeze(1) if biases else None

    @cached_property
    def _maps(self) -> list[LinearMap]:
        """K,V projections alone; made for the first fill, since a packed format cannot always share them."""
        return [block.qkv.rows(block.heads.query_width) for block in self._backbone.blocks]

    def fill(
        self,
        cache: KVCache,
        rotary: Rotary | None,
        layer: int,
        rows: Sequence[int],
        positions: Sequence[int],
        hidden: Tensor,
        final: Tensor | None = None,
    ) -> None:
        """Fill all layers from ``layer`` on.

        Args:
            cache: where to write.
            rotary: position tables, or ``None``.
            layer: exit layer; layers with 0-based index ≥ ``layer`` are filled.
            rows: rows of the slots.
            positions: their positions.
            hidden: exit hidden states, ``[n, hidden_size]``.
            final: estimates of the last layer's hidden states, same shape; each skipped layer is then filled from the
                point between the two where it stands, instead of from the exit hidden state.
        """
        if not rows:
            return
        if self._backbone.compiled is not None and final is None:
            slots = self._backbone.compiled.slots(cache, rotary, rows, positions)
            slots.fill(hidden, layer, self._backbone.num_layers)
            return
        device = hidden.device
        places = upload(positions, device)
        tables = None if rotary is None else rotary.tables(places)
        index = upload(rows, device)
        if not self._joint:
            for deeper in range(layer, self._backbone.num_layers):
                share = (deeper - layer) / (self._backbone.num_layers - layer)
                entered = hidden if final is None else torch.lerp(hidden, final, share)
                cache.write(deeper, index, places, self._backbone.blocks[deeper].fill(entered, rotary, tables))
            return
        entries = self._all_layers(layer, hidden, final)
        if rotary is not None and tables is not None:
            entries = rotary.turn(entries, self._backbone.heads.kv_part(tables))
        if len(rows) == 1:
            cache.entries[layer:, rows[0], :, positions[0]] = entries[:, 0]
        else:
            cache.entries[layer:, index, :, places] = entries.transpose(0, 1)

    def _all_layers(self, layer: int, hidden: Tensor, final: Tensor | None) -> Tensor:
        """Keys and values before rotation, ``[layers, n, 2 KV, head_dim]``."""
        if final is not None:  # the input of every skipped layer, [layers, n, hidden_size]
            left = self._backbone.num_layers - layer
            shares = torch.arange(left, dtype=hidden.dtype, device=hidden.device) / left
            hidden = torch.lerp(hidden.unsqueeze(0), final.unsqueeze(0), shares.view(-1, 1, 1))
        heads = self._backbone.heads
        norm = self._backbone.blocks[layer].attention_norm
        if isinstance(norm, RMSNorm):
            standard = norm.standardise(hidden)
        else:
            standard = F.layer_norm(hidden, (norm.width,), eps=norm.eps)
        normed = standard * self._gain[layer:]
        if self._shift is not None:
            normed = normed + self._shift[layer:]
        fused = torch.stack([project(x) for project, x in zip(self._maps[layer:], normed, strict=True)])
        return fused.view(len(fused), -1, 2 * heads.kv_heads, heads.head_dim)
