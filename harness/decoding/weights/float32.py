"""Weights as they were trained, or widened to it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from harness.contracts import LinearMap, WeightsFacts, WeightsFormat
from harness.decoding.blocks import Linear


class Float32(WeightsFormat):
    """32 bits a weight: the reference, whose tokens are transformers' own."""

    facts: ClassVar[WeightsFacts] = WeightsFacts(bits=32, accuracy="exact")

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Keep a float32 matrix as it is; widen another."""
        return Linear(weight, bias).to(torch.float32)
