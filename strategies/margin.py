"""Exit on the distance between the two best tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, ModelInfo
from harness.decoding.backbone import upload
from harness.models.heads import ReadsHead


@dataclass(frozen=True)
class Margin(ReadsHead):
    """Exit when the best token leads the second by a threshold, which may decay with the position.

    Rule: p₁ − p₂ ≥ τ(t), with τ(t) = clip(0.9·τ + 0.1·exp(−T·t/N), 0, 1) when T > 0 and τ otherwise; t is the
    number of tokens generated so far. Higher score = more certain. Cost per check: one evaluation of the LM head,
    or of the cheap head that ``head`` names, whose p are approximate.

    Source: Schuster et al., "CALM", 2022, arXiv 2207.07061, section 3.5 (softmax response) and Eq. 5 (decay).
    Deviation: CALM's N is the longest output; here it is the option ``horizon``.
    """

    threshold: Annotated[float, Field(ge=0, le=1, description="τ, lead of the best token in probability")] = 0.5
    decay: Annotated[float, Field(ge=0, le=100, description="temperature T of the decay; 0 keeps τ constant")] = 0.0
    horizon: Annotated[int, Field(ge=1, description="N, output length the decay is scaled to, tokens")] = 15

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Stateless."""
        return self

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare p₁ − p₂ with τ(t)."""
        reading = self.reading(view)
        second = reading.second_probability  # first: the best one's is found on the way
        return reading.top_probability - second >= self._threshold(view)

    def _threshold(self, view: ExitView) -> Tensor | float:
        if self.decay == 0:
            return self.threshold
        generated = upload([len(tokens) for tokens in view.token_ids], view.rows.device)
        decayed = 0.9 * self.threshold + 0.1 * torch.exp(-self.decay * generated / self.horizon)
        return decayed.clamp(0, 1)
