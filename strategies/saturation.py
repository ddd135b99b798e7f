"""Exit when the hidden state has stopped turning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import ExitView, StateScore, StateTest, Strategy


@dataclass(frozen=True)
class Saturation(Strategy):
    """Exit when the hidden state points where it pointed at the exit point before.

    Rule: cos(h_l, h_prev) ≥ τ, never at the first exit point. Higher score = more settled. Cost per check: one dot
    product of the hidden size, no LM head. τ > 1 never exits, which measures the cost of asking.

    Source: Schuster et al., "CALM", 2022, arXiv 2207.07061, section 3.5 (hidden-state saturation).
    Deviation: compared between exit points, not adjacent layers, since only exit points are asked.
    """

    threshold: Annotated[float, Field(ge=-1, le=2, description="τ, cosine with the previous exit point")] = 0.95

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare the cosine with τ."""
        before = view.previous
        if before is None:
            return torch.zeros(len(view.hidden_state), dtype=torch.bool, device=view.hidden_state.device)
        here, there = view.hidden_state.float(), before.hidden_state.float()
        norms = view.once(
            "saturation: norms",
            lambda: torch.linalg.vector_norm(here, dim=-1) * torch.linalg.vector_norm(there, dim=-1),
        )
        dots = view.once("saturation: dots", lambda: torch.linalg.vecdot(here, there))
        return dots >= self.threshold * norms

    def state_test(self, points: Sequence[int]) -> StateTest:
        """Let compiled layers compare the cosine."""
        never = StateScore(bias=torch.tensor([-math.inf]))
        cosine = StateScore(bias=torch.zeros(1), change=torch.tensor([[0.0], [1.0], [0.0]]))
        return StateTest((never, *[cosine] * (len(points) - 1)), self.threshold)
