"""The control: full depth for every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.contracts import ExitView, ModelInfo, Strategy


@dataclass(frozen=True)
class Full(Strategy):
    """Never exit: the baseline every other operating point is paired with.

    Rule: none; the last layer ends every token. Cost per check: 0, it is never asked.
    """

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Ask nowhere."""
        return ()

    def should_exit(self, view: ExitView) -> Tensor:
        """Stay."""
        return torch.zeros_like(view.rows, dtype=torch.bool)
