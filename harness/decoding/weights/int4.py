"""Weights in 4 bits, in groups of 32 along a row with a scale and a zero point each, by torch's weight-only product.

Sixteen levels between the least and the greatest weight of a group, as llama.cpp's Q4_1 lays them, so that a model
that was published in Q4_1 loses next to nothing. Activations are rounded to bfloat16, each row for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts import LinearMap, WeightsFacts, WeightsFormat
from harness.decoding.weights.int8 import Int8

__all__ = ["Int4"]

GROUP = 32
LEVELS = 15
MIDDLE = 8  # the level at which the operator's zero point stands
ROWS = 16  # the operator wants a multiple of rows of the matrix
PANEL = 64  # rows of the matrix that it arranges together


class Int4(WeightsFormat):
    """4 bits a weight, and a scale and a zero point for each 32 of them."""

    facts: ClassVar[WeightsFacts] = WeightsFacts(
        bits=4 + 32 / GROUP, accuracy="lossy", table="float16", relative_error=0.12, invariant=True
    )

    @property
    def head(self) -> WeightsFormat:
        """Eight bits for the LM head and the exits' shortcuts, as llama.cpp keeps them."""
        return Int8()

    def obstacle(self, device: str) -> str | None:
        """The operator is written for CPUs alone, in torch 2.13."""
        return None if device == "cpu" else "its product is written for CPUs alone"

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Round each group of a matrix to sixteen levels from its least to its greatest weight."""
        count, width = weight.shape
        whole = F.pad(weight.float(), (0, -width % GROUP, 0, -count % ROWS))
        groups = whole.view(whole.shape[0], -1, GROUP)
        least, greatest = groups.aminmax(dim=-1, keepdim=True)
        scales = ((greatest - least) / LEVELS).bfloat16().float().clamp(min=torch.finfo(torch.float32).tiny)
        levels = torch.round((groups - least) / scales).clamp(0, LEVELS).to(torch.int32).view(whole.shape)
        zeros = least + MIDDLE * scales
        return _Int4Linear(
            torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 2),
            torch.cat((scales, zeros), -1).transpose(0, 1).contiguous().bfloat16(),
            bias,
            (count, width),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Int4Linear:
    levels: Tensor
    scales_and_zeros: Tensor
    bias: Tensor | None
    shape: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        count, width = self.shape
        rows = x.bfloat16()
        if width % GROUP:
            rows = F.pad(rows, (0, -width % GROUP))
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.levels, GROUP, self.scales_and_zeros)
        if count % ROWS:
            product = product[:, :count]
        return (product if self.bias is None else product + self.bias).to(x.dtype)

    def rows(self, start: int) -> LinearMap:
        if start % PANEL or self.shape[0] % PANEL:
            return _Tail(self, start)
        bias = None if self.bias is None else self.bias[start:]
        scales_and_zeros = self.scales_and_zeros[:, start:].contiguous()
        return _Int4Linear(self.levels[start:], scales_and_zeros, bias, (self.shape[0] - start, self.shape[1]))

    @property
    def nbytes(self) -> int:
        bias = 0 if self.bias is None else self.bias.nbytes
        return self.levels.nbytes + self.scales_and_zeros.nbytes + bias


@dataclass(frozen=True, slots=True, eq=False)
class _Tail:
    """Output columns of a matrix whose panels cannot be parted: all are computed."""

    whole: LinearMap
    start: int

    def __call__(self, x: Tensor) -> Tensor:
        return self.whole(x)[:, self.start :].contiguous()

    def rows(self, start: int) -> _Tail:
        return _Tail(self.whole, self.start + start)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.whole.shape
        return rows - self.start, columns

    @property
    def nbytes(self) -> int:
        return self.whole.nbytes
