"""Closed-form linear maps from an exit's hidden state to the last layer's (Yom Din 2024, arXiv 2303.09435).

Only moments are kept (``hidden_size`` squared per exit), so tokens can stream by in any number. Each token counts
with the inverse square of its last hidden state's root mean square: the final norm divides by it anyway, and without
the weight a few tokens with enormous activations (the first of a sequence) would decide the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["ShortcutMoments"]


class ShortcutMoments:
    """Weighted second moments of (hidden state at an exit, hidden state after the last layer).

    Args:
        exit_points: exits to map from.
        hidden_size: width of the residual stream.
    """

    def __init__(self, exit_points: Sequence[int], hidden_size: int) -> None:
        self._inputs = {e: torch.zeros(hidden_size + 1, hidden_size + 1, dtype=torch.float64) for e in exit_points}
        self._outputs = {e: torch.zeros(hidden_size + 1, hidden_size, dtype=torch.float64) for e in exit_points}
        self.tokens = 0

    def add(self, states: Mapping[int, Tensor], last: Tensor) -> None:
        """Take tokens in.

        Args:
            states: exit layer → hidden states ``[n, hidden_size]``, one entry per exit point.
            last: hidden states after the last layer, before the final norm, same shape.
        """
        target = last.float()
        weight = target.pow(2).mean(-1, keepdim=True).rsqrt()
        target = target * weight
        self.tokens += len(target)
        for layer, state in states.items():
            rows = torch.cat((state.float() * weight, weight), dim=-1)
            self._inputs[layer] += (rows.t() @ rows).double()
            self._outputs[layer] += (rows.t() @ target).double()

    def solve(self, *, ridge: float = 1e-4) -> dict[int, tuple[Tensor, Tensor]]:
        """Return exit layer → (weight ``[out, in]``, bias ``[out]``), float32.

        Args:
            ridge: added to the diagonal, relative to its mean.
        """
        maps = {}
        for layer, moments in self._inputs.items():
            damped = moments + ridge * moments.diagonal()[:-1].mean() * torch.eye(len(moments), dtype=torch.float64)
            damped[-1, -1] = moments[-1, -1] * (1 + ridge)
            solution = torch.linalg.solve(damped, self._outputs[layer])
            maps[layer] = (solution[:-1].t().contiguous().float(), solution[-1].contiguous().float())
        return maps
