"""A copy of the LM head in eight bits, and the best rows of it exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from harness.contracts import CheapHead, HeadFacts, HeadLogits, LMHead
from harness.decoding.heads.exact_rows import ExactRows
from harness.errors import ModelError

__all__ = ["Int8"]

SMALLEST_SCALE = 1e-30
"""Of a row of zeros."""


class Int8(CheapHead):
    """Read all tokens with weights of eight bits, one scale a row, then the likeliest of them exactly.

    torch's product of such weights takes and gives bfloat16, in whose steps two logits can be alike; so the
    :attr:`EXACT` best are read again. A quarter of the bytes of a float32 LM head.
    """

    facts: ClassVar[HeadFacts] = HeadFacts(note="8-bit weights, of which the best logits are then exact")
    EXACT: ClassVar[int] = 16

    def __init__(self, lm_head: LMHead, size: int | None, tensors: Mapping[str, Tensor]) -> None:
        if lm_head.device != "cpu":
            raise ModelError(f"the head int8 runs on a CPU, and the model is on {lm_head.device}. Use head=shortlist.")
        rows = lm_head.rows(None)
        self._scales = (rows.abs().amax(1) / 127).clamp_min_(SMALLEST_SCALE).bfloat16()
        self._weight = (rows / self._scales.float().unsqueeze(1)).round_().clamp_(-127, 127).to(torch.int8)
        self._bias = lm_head.bias
        self._exact = ExactRows(lm_head, self.EXACT)

    @property
    def nbytes(self) -> int:
        """Those of the weights, their scales and the rows that are read exactly."""
        return self._weight.nbytes + self._scales.nbytes + self._exact.nbytes

    def __call__(self, states: Tensor) -> HeadLogits:
        """Multiply in eight bits, row by row, and replace the best."""
        logits = torch._weight_int8pack_mm(states.bfloat16(), self._weight, self._scales).float()
        if self._bias is not None:
            logits += self._bias
        self._exact.replace(logits, states)
        return HeadLogits(logits)
