"""A copy of the LM head in eight bits, and the best rows of it exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from harness.contracts import CheapHead, HeadFacts, HeadLogits, LMHead
from harness.decoding.weights.int8 import Int8 as Int8Weights
from harness.errors import ModelError

BLOCKS = 1024
"""Parts of the vocabulary whose best logits are compared first: ``topk`` over all of it takes ten times as long."""


class ExactRows:
    """The LM head's rows in float16, of which a few are read for each row of states."""

    def __init__(self, lm_head: LMHead, count: int) -> None:
        self._rows = lm_head.rows(None).half()
        self._bias = lm_head.bias
        self._count = min(count, lm_head.vocab_size)
        self._blocks = max(self._count, BLOCKS)

    @property
    def nbytes(self) -> int:
        """Bytes read for one row of states."""
        return self._count * self._rows.shape[1] * self._rows.element_size()

    def replace(self, logits: Tensor, states: Tensor) -> None:
        """Put exact logits where the approximate ones are best, in place.

        Args:
            logits: ``[n, vocab_size]`` float32.
            states: what they are of, ``[n, width]`` float32.
        """
        best = self._best(logits)
        rows = self._rows[best].float()  # [n, count, width]
        exact = torch.bmm(rows, states.unsqueeze(2)).squeeze(2)
        if self._bias is not None:
            exact += self._bias[best]
        logits.scatter_(1, best, exact)

    def _best(self, logits: Tensor) -> Tensor:
        """Return the columns of the largest logits, ``[n, count]``; a block that holds one is among the best blocks."""
        count, size = logits.shape
        whole = size - size % self._blocks
        if whole <= self._blocks:
            return logits.topk(self._count, dim=1).indices
        blocks = logits[:, :whole].view(count, -1, self._blocks)
        columns = blocks.amax(1).topk(self._count, dim=1).indices
        inside = blocks.gather(2, columns.unsqueeze(1).expand(-1, blocks.shape[1], -1))
        places = torch.arange(0, whole, self._blocks, device=logits.device).view(1, -1, 1) + columns.unsqueeze(1)
        values, places = inside.flatten(1), places.flatten(1)
        if whole < size:
            values = torch.cat((values, logits[:, whole:]), dim=1)
            tail = torch.arange(whole, size, device=logits.device).expand(count, -1)
            places = torch.cat((places, tail), dim=1)
        return places.gather(1, values.topk(self._count, dim=1).indices)


class Int8(CheapHead):
    """Read all tokens with weights of eight bits, one scale a row, then the likeliest of them exactly.

    Rounded weights cannot tell the best token from one nearly as good; so the :attr:`EXACT` best are read again. A
    quarter of the bytes of a float32 LM head.
    """

    facts: ClassVar[HeadFacts] = HeadFacts(note="8-bit weights, of which the best logits are then exact")
    EXACT: ClassVar[int] = 16

    def __init__(self, lm_head: LMHead, size: int | None, tensors: Mapping[str, Tensor]) -> None:
        if lm_head.device != "cpu":
            raise ModelError(f"the head int8 runs on a CPU, and the model is on {lm_head.device}. Use head=shortlist.")
        self._matrix = Int8Weights().pack(lm_head.rows(None), lm_head.bias)
        self._exact = ExactRows(lm_head, self.EXACT)

    @property
    def nbytes(self) -> int:
        """Those of the weights, their scales, the bias and the rows that are read exactly."""
        return self._matrix.nbytes + self._exact.nbytes

    def __call__(self, states: Tensor) -> HeadLogits:
        """Multiply in eight bits, and replace the best."""
        logits = self._matrix(states)
        self._exact.replace(logits, states)
        return HeadLogits(logits)
