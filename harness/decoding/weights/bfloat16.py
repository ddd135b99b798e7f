"""Weights in bfloat16, multiplied by torch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from harness.contracts import LinearMap, WeightsFacts, WeightsFormat
from harness.decoding.blocks import Linear


class Bfloat16(WeightsFormat):
    """16 bits a weight, 8 of them exponent: float32's range, two to three digits, activations rounded alike."""

    facts: ClassVar[WeightsFacts] = WeightsFacts(bits=16, accuracy="lossy", table="bfloat16", relative_error=6e-3)

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Round a matrix."""
        return Linear(weight, bias).to(torch.bfloat16)

    def words(self, head: LinearMap) -> Tensor | None:
        """Its matrix."""
        return head.weight if isinstance(head, Linear) else None
