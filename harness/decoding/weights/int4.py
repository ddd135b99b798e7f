"""Weights in 4 bits, in groups of 32 along a row with a scale and a least weight each.

Sixteen levels between the least and the greatest weight of a group, as llama.cpp's Q4_1 lays them, so that a model
that was published in Q4_1 loses next to nothing. Activations are float32.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from harness.contracts import LinearMap, WeightsFacts, WeightsFormat
from harness.decoding import kernels
from harness.decoding.weights.int8 import Int8

GROUP = 32
LEVELS = 15


class Int4(WeightsFormat):
    """4 bits a weight, and a scale and a least weight for each 32 of them."""

    facts: ClassVar[WeightsFacts] = WeightsFacts(
        bits=4 + 32 / GROUP,
        accuracy="lossy",
        table="float16",
        largest=torch.finfo(torch.float16).max / 2,
        relative_error=0.12,
        invariant=True,
    )

    kind: ClassVar[kernels.Kind] = kernels.INT4

    @property
    def head(self) -> WeightsFormat:
        """Eight bits for the LM head and the exits' shortcuts, as llama.cpp keeps them."""
        return Int8()

    def obstacle(self, device: str) -> str | None:
        """Its products are compiled."""
        return kernels.obstacle() if device == "cpu" else "its product is written for CPUs alone"

    def prepare(self, device: str) -> None:
        """Compile its products."""
        if device == "cpu":
            kernels.prepare(self.kind)

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Round each group of a matrix to sixteen levels from its least to its greatest weight."""
        from harness.decoding.kernels import layers

        return layers.CompiledLinear.of(self.kind, weight, bias, self._panels)

    def _panels(self, rows: Tensor) -> list[Tensor]:
        from harness.decoding.kernels import layers

        numbers = layers.in_panels(rows.float())
        groups = numbers.view(len(numbers), -1, GROUP, numbers.shape[2])  # [panels, groups, 32, columns]
        least, greatest = groups.aminmax(dim=2, keepdim=True)
        least = least.half()
        scales = ((greatest - least.float()) / LEVELS).half()
        divisors = scales.float().clamp(min=torch.finfo(torch.float16).tiny)
        levels = torch.round((groups - least.float()) / divisors).clamp(0, LEVELS).to(torch.uint8)
        low, high = self.arranged(levels).chunk(2, dim=3)
        parts = [part.contiguous().view(torch.uint8).flatten(2) for part in (scales, least, low | (high << 4))]
        return [torch.cat(parts, dim=2)]

    def arranged(self, levels: Tensor) -> Tensor:
        """Return levels ``[panels, groups, 32, columns]`` uint8 in the order in which halves of them share bytes."""
        return levels
