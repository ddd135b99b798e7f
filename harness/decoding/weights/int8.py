"""Weights in 8 bits with a scale per row of the matrix; see :mod:`harness.decoding.eight_bits` for the products."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from harness.contracts import LinearMap, WeightsFacts, WeightsFormat
from harness.decoding.eight_bits import eight_bits

__all__ = ["Int8"]


class Int8(WeightsFormat):
    """8 bits a weight and a scale per row of the matrix; activations in 8 bits too, each row for itself."""

    facts: ClassVar[WeightsFacts] = WeightsFacts(
        bits=8, accuracy="lossy", table="float16", relative_error=2e-2, invariant=True
    )

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Round each row of a matrix to multiples of its largest weight over 127."""
        return eight_bits(weight, bias)
