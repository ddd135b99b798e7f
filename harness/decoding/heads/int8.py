"""A copy of the LM head in eight bits, and the best rows of it exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from harness.contracts import CheapHead, HeadFacts, HeadLogits, LMHead
from harness.decoding.heads.exact_rows import ExactRows
from harness.decoding.weights.int8 import Int8 as Int8Weights
from harness.errors import ModelError

__all__ = ["Int8"]


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
