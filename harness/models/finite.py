"""Whether a tensor can be computed with: one reduction each, nothing copied."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fault_of"]


def fault_of(tensor: Tensor, *, zeros: bool = True) -> str:
    """Return what is wrong with a tensor, a phrase behind its name; empty where nothing is.

    Args:
        tensor: of floating point.
        zeros: whether it may be all zeros.
    """
    if not tensor.numel():
        return ""
    least, most = (end.item() for end in tensor.detach().aminmax())  # both are NaN where one element is
    if math.isnan(least):
        return "holds NaN"
    if math.isinf(least) or math.isinf(most):
        return "holds infinity"
    return "" if zeros or least or most else "is all zeros"
