"""One packed matrix times rows, compiled."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numba import carray  # type: ignore[attr-defined]
from torch import Tensor

from harness.decoding.kernels import moved, once, team
from harness.decoding.kernels.lanes import COLUMNS, MANY, STEP, Bits, c_function, product_of, share, which

_ALONE = 1 << 18  # multiplications, below which a second thread costs more than it brings

(
    _WEIGHTS, _STRIDE, _COUNT, _X, _X_STRIDE, _NUMBER, _WIDTH, _OUT, _OUT_STRIDE, _ROOM, _SIZE, _MEMBER, _FIELDS,
) = range(13)  # fmt: skip
_Parameters = ctypes.c_int64 * _FIELDS


@once
def product_for(bits: type[Bits]) -> Any:
    """Return the compiled product of a kind of weights; takes a second."""
    product: Any = product_of(bits())

    @c_function
    def run(data: Any) -> None:
        given = carray(data, _FIELDS, np.int64)
        members, member = which(given[_SIZE], given[_MEMBER])
        start, end = share(given[_COUNT], member, members)
        product(
            given[_WEIGHTS], given[_STRIDE], start, end, given[_X], given[_X_STRIDE], given[_NUMBER], given[_WIDTH],
            given[_OUT], given[_OUT_STRIDE], given[_ROOM] + 4 * COLUMNS * given[_WIDTH] * member,
        )  # fmt: skip

    return run


@dataclass(frozen=True, slots=True, eq=False)
class CompiledLinear:
    """``x @ weight.T + bias`` from packed rows. Implements :class:`harness.contracts.LinearMap`.

    Attributes:
        bits: how the rows are stored.
        data: ``[out, bytes of a row]`` uint8, the width padded to a multiple of 32 with what multiplies as zero.
        width: numbers in a row, without the padding.
        bias: ``[out]`` float32, or ``None``.
    """

    bits: type[Bits]
    data: Tensor
    width: int
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        product_for(self.bits)

    @classmethod
    def of(cls, bits: type[Bits], numbers: Tensor, bias: Tensor | None, header: Tensor | None = None) -> CompiledLinear:
        """Store numbers ``[out, in]`` as they are, each row behind its part of ``header`` ``[out, 1]``."""
        count, width = numbers.shape
        data = F.pad(numbers, (0, -width % STEP)).contiguous().view(torch.uint8)
        if header is not None:
            data = torch.cat((header.contiguous().view(torch.uint8), data), dim=1)
        return cls(bits, moved(data.view(count, -1)), width, None if bias is None else bias.float())

    def __call__(self, x: Tensor) -> Tensor:
        """Map ``[n, in]`` to ``[n, out]``, in the dtype of ``x``; sums are float32."""
        rows, count, threads = x.float(), self.data.shape[0], torch.get_num_threads()
        if self.width % STEP:
            rows = F.pad(rows, (0, -self.width % STEP))
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        number, width = rows.shape
        out = rows.new_empty((number, count))
        together = team()
        if number * count * width < _ALONE:
            threads = 1
        room = rows.new_empty(threads * COLUMNS * width) if number >= MANY else None
        given = _Parameters(
            self.data.data_ptr(), self.data.stride(0), count, rows.data_ptr(), 4 * rows.stride(0), number, width,
            out.data_ptr(), count, 0 if room is None else room.data_ptr(), together.size, together.member,
        )  # fmt: skip
        together.run(product_for(self.bits).address, ctypes.addressof(given), threads)
        return (out if self.bias is None else out.add_(self.bias)).to(x.dtype)

    def rows(self, start: int) -> CompiledLinear:
        """Return the map restricted to output columns from ``start`` on, sharing storage."""
        return CompiledLinear(
            self.bits, self.data[start:], self.width, None if self.bias is None else self.bias[start:]
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of the result and of the input: ``(out, in)``."""
        return self.data.shape[0], self.width

    @property
    def nbytes(self) -> int:
        """Bytes read to apply it once."""
        return self.data.nbytes + (0 if self.bias is None else self.bias.nbytes)
