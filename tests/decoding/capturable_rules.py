"""Exit rules whose checks can be recorded: shipped ones, and two of the tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.contracts import ExitView, Strategy
from strategies.confidence import Confidence
from strategies.entropy import Entropy
from strategies.margin import Margin
from strategies.patience import Patience
from strategies.saturation import Saturation

__all__ = ["RULES", "Turning"]


@dataclass(frozen=True)
class Turning(Strategy):
    """Exits at all depths, by the state, and asks for no logits; rounding does not change when."""

    share: float = 0.3

    @property
    def capturable(self) -> bool:
        return True

    def should_exit(self, view: ExitView) -> Tensor:
        return (view.hidden_state.float().sum(-1) * 3).remainder(1) < self.share


@dataclass(frozen=True)
class Agreeing(Turning):
    """Looks back at what nobody has read: the token of the exit before, where that has not left."""

    def should_exit(self, view: ExitView) -> Tensor:
        if view.previous is None:
            return torch.zeros_like(view.hidden_state[:, 0], dtype=torch.bool)
        return view.previous.top_token == view.top_token


RULES: dict[str, Strategy] = {
    "confidence": Confidence(threshold=0.5), "entropy": Entropy(threshold=0.5), "margin": Margin(threshold=0.1),
    "patience": Patience(patience=2), "saturation": Saturation(threshold=0.5), "turning": Turning(),
    "agreeing": Agreeing(),
}  # fmt: skip
