"""Weights in 8 bits with a scale per row of the matrix, multiplied with float32 activations.

Rounding is symmetric, to the nearest of 255 levels of each row (as LLM.int8() does without outliers, Dettmers 2022,
arXiv 2208.07339, section 2).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from harness.contracts import LinearMap, WeightsFacts, WeightsFormat
from harness.decoding import kernels

LEVELS = 127
"""Of either sign, of a weight."""

_SMALLEST = 1e-30  # of what a row is divided by, so that zeros stay zeros


class Int8(WeightsFormat):
    """8 bits a weight and a scale per row of the matrix."""

    facts: ClassVar[WeightsFacts] = WeightsFacts(
        bits=8, accuracy="lossy", table="float16", relative_error=2e-2, invariant=True
    )
    kind: ClassVar[kernels.Kind] = kernels.INT8

    def obstacle(self, device: str) -> str | None:
        """Its products are compiled."""
        return kernels.obstacle() if device == "cpu" else "its product is written for CPUs alone"

    def prepare(self, device: str) -> None:
        """Compile its products."""
        if device == "cpu":
            kernels.prepare(self.kind)

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Round each row of a matrix to multiples of its largest weight over 127."""
        from harness.decoding.kernels import layers

        return layers.CompiledLinear.of(self.kind, weight, bias, self._panels)

    def _panels(self, rows: Tensor) -> list[Tensor]:
        from harness.decoding.kernels import layers

        numbers = layers.in_panels(rows.float())
        scales = numbers.abs().amax(1, keepdim=True) / LEVELS
        levels = self.arranged(torch.round(numbers / scales.clamp(min=_SMALLEST)).to(torch.int8))
        return [scales, levels]

    def arranged(self, levels: Tensor) -> Tensor:
        """Return levels ``[panels, in, columns]`` int8 as they are stored."""
        return levels
