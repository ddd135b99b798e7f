"""A float32 matrix packed for products with few rows, nearly exact: half the bytes where the machine can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.contracts import Product
from harness.decoding.products import multiply

__all__ = ["pack"]

LARGEST_HALF = torch.finfo(torch.float16).max


def pack(weight: Tensor) -> Product:
    """Pack ``[out, in]`` float32: on a CPU with FBGEMM as float16, whose products accumulate in float32."""
    here = weight.device.type == "cpu" and "fbgemm" in torch.backends.quantized.supported_engines
    if here and float(weight.abs().max()) <= LARGEST_HALF:
        return _Half(torch.ops.quantized.linear_prepack_fp16(weight, None), 2 * weight.numel())
    return _Plain(weight)


@dataclass(frozen=True, slots=True)
class _Half:
    packed: Any
    nbytes: int

    def __call__(self, rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows, self.packed)
        return product


@dataclass(frozen=True, slots=True)
class _Plain:
    weight: Tensor

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, rows: Tensor) -> Tensor:
        return multiply(rows, self.weight, None)
