"""Weights in half precision: FBGEMM's product with float32 activations on a CPU, torch's own on an accelerator.

FBGEMM (Khudia 2021, arXiv 2101.05615) keeps the matrix in panels of half-precision numbers and widens them in
registers, so that a product reads half the bytes and sums in float32. Eight rows take little more than one, and the
bits of a row's product do not depend on the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.contracts import LinearMap, WeightsFacts, WeightsFormat
from harness.decoding.blocks import Linear

__all__ = ["Fp16"]


class Fp16(WeightsFormat):
    """16 bits a weight, 10 of them mantissa, with float32 activations on a CPU."""

    facts: ClassVar[WeightsFacts] = WeightsFacts(
        bits=16,
        accuracy="near-exact",
        table="float16",
        largest=torch.finfo(torch.float16).max,
        relative_error=1e-3,
        invariant=True,
    )

    def obstacle(self, device: str) -> str | None:
        """FBGEMM is compiled into torch for x86 alone, and runs where there is AVX2."""
        if device == "cpu" and "fbgemm" not in torch.backends.quantized.supported_engines:
            return "torch has no FBGEMM here, which needs an x86 processor with AVX2"
        return None

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Round a matrix, and arrange it for FBGEMM on a CPU."""
        if weight.device.type == "cpu":
            return _FbgemmLinear.of(weight, bias)
        return Linear(weight, bias).to(torch.float16)


@dataclass(frozen=True, slots=True, eq=False)
class _FbgemmLinear:
    packed: Any
    shape: tuple[int, int]
    biased: bool
    _parts: dict[int, _FbgemmLinear] = field(default_factory=dict)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> _FbgemmLinear:
        packed = torch.ops.quantized.linear_prepack_fp16(
            weight.float().contiguous(), None if bias is None else bias.float()
        )
        return cls(packed, (weight.shape[0], weight.shape[1]), bias is not None)

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype is torch.float32:
            product: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
            return product
        return self(x.float()).to(x.dtype)

    def rows(self, start: int) -> _FbgemmLinear:
        """What is packed cannot be parted: the part is packed for itself, once."""
        if start not in self._parts:
            weight, bias = torch.ops.quantized.linear_unpack_fp16(self.packed)
            self._parts[start] = self.of(weight[start:], None if bias is None else bias[start:])
        return self._parts[start]

    @property
    def nbytes(self) -> int:
        rows, columns = self.shape
        return 2 * rows * columns + 4 * rows * self.biased
