"""Exit on the probability of the best token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from harness.contracts import ExitView
from harness.models.heads import ReadsHead


@dataclass(frozen=True)
class Confidence(ReadsHead):
    """Exit when the best token's probability reaches a threshold.

    Rule: max p_l ≥ τ, p_l the softmax of the exit head. Higher score = more certain. Cost per check: one
    evaluation of the LM head, or of the cheap head that ``head`` names, whose p_l is approximate.

    Source: Varshney et al., "LITE", 2023, arXiv 2310.18581, section 3.2 (confidence-based exiting); Chen et al.,
    "EE-LLM", 2023, arXiv 2312.04916.
    """

    probabilistic: ClassVar[bool] = True

    threshold: Annotated[float, Field(ge=0, le=1, description="τ, probability of the best token")] = 0.9

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare max p with τ."""
        return self.reading(view).top_probability >= self.threshold
