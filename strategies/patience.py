"""Exit when consecutive exit points agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import ExitView, Strategy


@dataclass(frozen=True)
class Patience(Strategy):
    """Exit when the best token has been the same at several consecutive exit points.

    Rule: argmax p_l = argmax p at the P − 1 exit points before. Cost per check: one LM-head evaluation.

    Source: Zhou et al., "BERT Loses Patience" (PABEE), 2020, arXiv 2006.04152, section 3.1. Deviation: PABEE counts
    P agreements after the first prediction; here ``patience`` is the length of the agreeing run, so PABEE's P is
    ``patience`` − 1.
    """

    patience: Annotated[int, Field(ge=2, le=64, description="P, exit points in a row with the same best token")] = 3

    def should_exit(self, view: ExitView) -> Tensor:
        """Walk back over this token's exit points."""
        token = view.top_token
        same = torch.ones_like(token, dtype=torch.bool)
        earlier = view.previous
        for _ in range(self.patience - 1):
            if earlier is None:
                return torch.zeros_like(same)
            same &= earlier.top_token == token
            earlier = earlier.previous
        return same
