"""Prefill: prompts, or the next piece of one, on their way into the cache.

All layers run for every position, and nobody leaves. What nobody reads is not computed: behind the last layer only
the last token's state is wanted, so that of this layer the other positions need keys and values alone.

A piece attends to what the cache holds before it: the pieces that were read earlier, or what a prompt that began alike
has left there. Products over other numbers of rows differ in their last bits, and so do keys and values of a prompt
that was read in one piece and in several; in bfloat16 that can tip a near-tie.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Rotary
from harness.decoding.cache import KVCache, attend
from harness.decoding.products import FEW
from harness.decoding.transfer import upload

__all__ = ["PromptPass"]


class PromptPass:
    """Pieces of the prompts of several rows, right-padded: causal attention never looks at the padding.

    Call one of the three methods, once.

    Args:
        backbone: the model.
        rotary: position tables long enough, or ``None``.
        cache: where keys and values are stored, and those of the positions before are.
        rows: rows of the batch, in ascending order.
        pieces: tokens of each row, at least one.
        start: position of the first token of every piece.
    """

    def __init__(
        self,
        backbone: Backbone,
        rotary: Rotary | None,
        cache: KVCache,
        rows: Sequence[int],
        pieces: Sequence[Sequence[int]],
        start: int = 0,
    ) -> None:
        self._backbone, self._rotary, self._cache, self._start = backbone, rotary, cache, start
        device, lengths = backbone.device, [len(piece) for piece in pieces]
        self._count, self._length = len(pieces), max(lengths)
        neighbours = rows[-1] - rows[0] + 1 == len(rows)
        self._rows = slice(rows[0], rows[-1] + 1) if neighbours else upload(rows, device)
        self._ragged = min(lengths) < self._length
        # The last token of each piece, in what follows.
        self._ends = upload([place * self._length + length - 1 for place, length in enumerate(lengths)], device)
        padded = upload([[*piece, *[0] * (self._length - len(piece))] for piece in pieces], device)
        positions = torch.arange(start, start + self._length, device=device)
        self._places = positions.repeat(self._count)
        self._state = backbone.embed(padded.flatten(), self._places)  # [rows × length, hidden_size]
        self._tables = None if rotary is None else rotary.tables(self._places)
        self._mask: Tensor | None = None
        if start:  # as numbers, once: torch would make them of booleans in every layer
            self._mask = cache.mask(positions, start + self._length)

    def fill(self) -> None:
        """Store keys and values, and compute nothing else: more of the prompt follows."""
        last = self._backbone.num_layers - 1
        self._run(last)
        self._write(last, self._backbone.blocks[last].fill(self._state, self._rotary, self._tables))

    def last(self) -> Tensor:
        """Store keys and values, and return the hidden state of each row's last token, ``[n, hidden_size]``."""
        if len(self._state) <= FEW:  # they cost what one costs
            self._run(self._backbone.num_layers)
            return self._state[self._ends]
        self.fill()
        block, state = self._backbone.blocks[-1], self._state[self._ends]
        positions = self._places[self._ends]
        tables = None if self._rotary is None else self._rotary.tables(positions)
        queries, _ = block.project(state, self._rotary, tables)
        mask = self._cache.mask(positions, self._start + self._length)[:, None, None, :] if self._ragged else None
        keys, values = self._kept(self._backbone.num_layers - 1)
        return block.finish(state, attend(queries, keys, values, mask, self._backbone.heads, block.scale))

    def all(self) -> Tensor:
        """Store keys and values, and return the hidden states of every token, ``[n, longest, hidden_size]``.

        Undefined at padding.
        """
        self._run(self._backbone.num_layers)
        return self._state.view(self._count, self._length, -1)

    def _run(self, layers: int) -> None:
        heads, state = self._backbone.heads, self._state
        for index, block in enumerate(self._backbone.blocks[:layers]):
            queries, entries = block.project(state, self._rotary, self._tables)
            keys, values = self._write(index, entries)
            attended = F.scaled_dot_product_attention(
                self._by_head(queries), keys, values, attn_mask=self._mask, is_causal=self._mask is None,
                scale=block.scale, enable_gqa=heads.grouped,
            )  # fmt: skip
            state = block.finish(state, attended.transpose(1, 2).reshape(-1, heads.query_width))
        self._state = state

    def _write(self, layer: int, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Store entries ``[rows × length, 2 KV, D]``, and return keys and values of everything up to here."""
        by_head = self._by_head(entries)
        self._cache.write_prompt(layer, self._rows, self._start, by_head)
        if self._start:
            return self._kept(layer)
        keys, values = by_head.chunk(2, dim=1)
        return keys, values

    def _kept(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._cache.gather(layer, self._rows, self._start + self._length)

    def _by_head(self, flat: Tensor) -> Tensor:
        """``[rows × length, heads, D]`` → ``[rows, heads, length, D]``."""
        return flat.view(self._count, self._length, -1, self._backbone.heads.head_dim).transpose(1, 2)
