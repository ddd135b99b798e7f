"""Weights in 8 bits with a scale per row of the matrix, by torch's weight-only product in bfloat16.

Rounding is symmetric, to the nearest of 255 levels of each row (as LLM.int8() does without outliers, Dettmers 2022,
arXiv 2208.07339, section 2). Activations are rounded to bfloat16, each row for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts import LinearMap, WeightsFacts, WeightsFormat

__all__ = ["Int8"]

LEVELS = 127
COLUMNS = 32  # the operator reads so many at a time, beyond the end of a matrix that has no multiple of them


class Int8(WeightsFormat):
    """8 bits a weight and a scale per row of the matrix."""

    facts: ClassVar[WeightsFacts] = WeightsFacts(
        bits=8, accuracy="lossy", table="float16", relative_error=2e-2, invariant=True
    )

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Round each row of a matrix to multiples of its largest weight over 127."""
        weight = weight.float()
        scales = weight.abs().amax(1) / LEVELS
        levels = torch.round(weight / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1))
        padded = F.pad(levels.to(torch.int8), (0, -weight.shape[1] % COLUMNS))
        return _Int8Linear(padded, scales.bfloat16(), bias, weight.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class _Int8Linear:
    levels: Tensor
    scales: Tensor
    bias: Tensor | None
    width: int

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.bfloat16()
        if self.width % COLUMNS:
            rows = F.pad(rows, (0, -self.width % COLUMNS))
        product = torch._weight_int8pack_mm(rows, self.levels, self.scales)
        return (product if self.bias is None else product + self.bias).to(x.dtype)

    def rows(self, start: int) -> _Int8Linear:
        bias = None if self.bias is None else self.bias[start:]
        return _Int8Linear(self.levels[start:], self.scales[start:], bias, self.width)

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[0], self.width

    @property
    def nbytes(self) -> int:
        return self.levels.nbytes + self.scales.nbytes + (0 if self.bias is None else self.bias.nbytes)
