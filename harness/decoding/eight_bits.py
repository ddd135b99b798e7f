"""A matrix in eight bits with a scale per row, for the weights format and for the cheap head.

Rounding is symmetric, to the nearest of 255 levels of each row (as LLM.int8() does without outliers, Dettmers 2022,
arXiv 2208.07339, section 2). Two operators of torch multiply with that:

- oneDNN's product of eight-bit weights, arranged once, and eight-bit activations. An activation becomes two of these,
  its upper and its lower byte, with a scale for each row: one byte alone costs a tenth of the default model's tokens,
  and twice as many rows cost next to nothing where few are multiplied. Sums are of whole numbers, so that neither the
  rows beside a row nor their number change it. (``torch._int_mm`` gives the same sums from a plain matrix, which it
  arranges anew in every call: two rows take it twice the time of one.)
- ``torch._weight_int8pack_mm``, of eight-bit weights and bfloat16 activations, wherever the first is not to be had. It
  reads beyond a matrix whose columns are no multiple of 16, and gets a padded one.

Processors without eight-bit dot products (VNNI) add two products in 16 bits before they widen them, and what overflows
there is lost without a word, by ``torch._int_mm`` too. So :func:`sums_are_whole` multiplies the largest levels there
are, and believes the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts import LinearMap

__all__ = ["LEVELS", "eight_bits", "sums_are_whole"]

LEVELS = 127
"""Of either sign, of a weight."""

_BYTE, _ZERO = 256, 128  # an activation is 256 upper + lower, each a byte in which 128 stands for zero
_OFFSET = torch.tensor(_BYTE * _ZERO + _ZERO + 0.5)  # makes of a whole number these bytes; .5, since fractions are cut
_NO_ZERO_POINTS = torch.zeros(0, dtype=torch.int64)
_COMMON_ROWS = 4  # for which oneDNN arranges a matrix
_COLUMNS = 32  # that _weight_int8pack_mm is given a multiple of
_SMALLEST = 1e-30  # of what a row is divided by, so that zeros stay zeros


def eight_bits(weight: Tensor, bias: Tensor | None) -> LinearMap:
    """Round each row of a matrix ``[out, in]`` to multiples of its largest weight over 127."""
    weight = weight.float()
    scales = weight.abs().amax(1) / LEVELS
    levels = torch.round(weight / scales.clamp(min=_SMALLEST).unsqueeze(1)).to(torch.int8)
    if weight.device.type == "cpu" and sums_are_whole():
        return _WholeSums.of(levels, scales, bias)
    return _WideRows(F.pad(levels, (0, -weight.shape[1] % _COLUMNS)), scales.bfloat16(), bias, weight.shape[1])


@cache
def sums_are_whole() -> bool:
    """Whether this processor sums products of eight-bit numbers without losing any, at the speed of such a product."""
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False  # oneDNN's reference, which other processors get, takes seconds for a token
    levels = torch.full((32, 64), LEVELS, dtype=torch.int8)
    product = _WholeSums.of(levels, torch.ones(32), None)(torch.ones(2, 64))
    return bool((product == LEVELS * 64).all())


@dataclass(frozen=True, slots=True, eq=False)
class _WholeSums:
    levels: Tensor
    scales: Tensor
    bias: Tensor | None
    _parts: dict[int, _WholeSums] = field(default_factory=dict)

    @classmethod
    def of(cls, levels: Tensor, scales: Tensor, bias: Tensor | None) -> _WholeSums:
        packed = torch.ops.onednn.qlinear_prepack(levels.contiguous(), [_COMMON_ROWS, levels.shape[1]])
        return cls(packed, scales, bias)

    def __call__(self, x: Tensor) -> Tensor:
        wide, count = x.float(), x.shape[0]
        largest = torch.linalg.vector_norm(wide, torch.inf, 1, keepdim=True)
        inverse = LEVELS * _BYTE / largest.clamp_(min=_SMALLEST)
        numbers = torch.addcmul(_OFFSET, wide, inverse).to(torch.uint16)
        rows = numbers.view(torch.uint8).view(count, -1, 2).permute(2, 0, 1).reshape(2 * count, -1)  # lower, upper
        products = torch.ops.onednn.qlinear_pointwise.default(
            rows, 1.0, _ZERO, self.levels, self.scales, _NO_ZERO_POINTS, None, 1.0, 0, torch.float32, "none", [], ""
        )
        product = torch.add(products[:count], products[count:], alpha=_BYTE).div_(inverse)
        return (product if self.bias is None else product.add_(self.bias)).to(x.dtype)

    def rows(self, start: int) -> _WholeSums:
        """What is packed cannot be parted: the part is packed for itself, once."""
        if start not in self._parts:
            bias = None if self.bias is None else self.bias[start:]
            self._parts[start] = self.of(self.levels.to_dense().t()[start:], self.scales[start:], bias)
        return self._parts[start]

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[1], self.levels.shape[0]

    @property
    def nbytes(self) -> int:
        rows, columns = self.shape
        return rows * columns + self.scales.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, slots=True, eq=False)
class _WideRows:
    levels: Tensor
    scales: Tensor
    bias: Tensor | None
    width: int

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.bfloat16()
        if self.width % _COLUMNS:
            rows = F.pad(rows, (0, -self.width % _COLUMNS))
        product = torch._weight_int8pack_mm(rows, self.levels, self.scales)
        return (product if self.bias is None else product + self.bias).to(x.dtype)

    def rows(self, start: int) -> _WideRows:
        bias = None if self.bias is None else self.bias[start:]
        return _WideRows(self.levels[start:], self.scales[start:], bias, self.width)

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[0], self.width

    @property
    def nbytes(self) -> int:
        return self.levels.nbytes + self.scales.nbytes + (0 if self.bias is None else self.bias.nbytes)
