"""Weights in 4 bits as ``int4`` has them, and activations in 8 bits with a scale for each 32 of a row.

That is how llama.cpp multiplies its Q4_1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from harness.contracts import WeightsFacts, WeightsFormat
from harness.decoding import kernels
from harness.decoding.weights.int4 import Int4
from harness.decoding.weights.w8a8 import NOTE, W8A8


class W4A8(Int4):
    """4 bits a weight and 8 an activation."""

    facts: ClassVar[WeightsFacts] = replace(Int4.facts, note=NOTE)
    kind: ClassVar[kernels.Kind] = kernels.W4A8

    @property
    def head(self) -> WeightsFormat:
        """Eight bits for the LM head and the exits' shortcuts."""
        return W8A8()

    def arranged(self, levels: Tensor) -> Tensor:
        """Put four inputs of an output side by side."""
        return levels.view(*levels.shape[:2], -1, 4, levels.shape[3]).transpose(3, 4)  # [panels, groups, 8, columns, 4]
