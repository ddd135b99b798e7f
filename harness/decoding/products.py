"""One matrix times a few rows: the kernel that reads the matrix at the speed of one row, by precision and rows.

Decoding reads each matrix for one row; where exited tokens catch up, and in a batch, for a few. All that takes time is
the reading, so two rows should cost what one does. Not every kernel is made for that: `make bench` prints what each
number of rows costs here (``tests/benchmarks/test_rows.py``, with the ways that were tried).

- float32: ``F.linear`` of 2 to 8 rows takes 1.5 to 2 times as long as of one, the same product from the other side,
  weight × rowsᵀ, no longer than one row up to four (three are padded); so eight are two times four.
- bfloat16: ``F.linear`` of 2 to 8 rows takes as long as of one, and ``torch.mv`` for one row is up to 1.5 times as fast
  on processors without bfloat16 arithmetic (an Intel Xeon), and half as fast with it (an AMD EPYC of the fifth
  generation).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.host.processor import instructions

__all__ = ["FEW", "multiply"]

FEW = 8  # rows, up to which a product takes the time of reading its matrix
AT_ONCE = 4


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``rows @ weight.T + bias``, ``[n, in]`` by ``[out, in]`` → ``[n, out]``."""
    count = rows.shape[0]
    if count <= FEW and rows.device.type == "cpu":
        if rows.dtype is torch.float32 and count > 1:
            return torch.cat([_from_the_left(part, weight, bias) for part in torch.split(rows, AT_ONCE)])
        if rows.dtype is torch.bfloat16 and count == 1 and _mv_is_faster():
            y = torch.mv(weight, rows[0]).unsqueeze(0)
            return y if bias is None else y + bias
    return F.linear(rows, weight, bias)


def _from_the_left(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product as weight × rowsᵀ, of ``AT_ONCE`` rows at most."""
    count = rows.shape[0]
    columns = (F.pad(rows, (0, 0, 0, 1)) if count == 3 else rows).t()
    product = torch.mm(weight, columns) if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    return product.t()[:count]


@cache
def _mv_is_faster() -> bool:
    """Whether one bfloat16 row is read faster by ``torch.mv``; with matrix tiles (AMX) it was not tried, and stays."""
    found = instructions()
    return "avx512_bf16" not in found or "amx_bf16" in found
