"""A confidence stop: how probable the whole draft is."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar

from pydantic import Field

from harness.contracts import Batch, Draft, DraftRule, ModelInfo
from harness.contracts.drafts import DraftSource


@dataclass(frozen=True)
class Product(DraftSource):
    """End a draft when the product of its tokens' probabilities falls below a bound; proposes nothing.

    Rule: verify after token k when p₁·…·p_k < B, p_i the probability of token i under the head of its exit: the chance
    that the whole draft stands, as far as exits know it. After Liu et al., "Kangaroo", 2024, arXiv 2404.18911, which
    stops when the latest token's probability alone is below a threshold; a product also ends long drafts. The token
    that ends a draft is part of it and is verified with the others.
    """

    proposes: ClassVar[bool] = False

    bound: Annotated[float, Field(ge=0, le=1, description="B, least product; 0 never ends a draft")] = 0.3

    def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
        """Need nothing of the model."""
        return _Product(self.bound)


class _Product(DraftRule):
    needs_probabilities: ClassVar[bool] = True

    def __init__(self, bound: float) -> None:
        self._bound = bound

    def verify_now(self, draft: Draft) -> bool:
        return prod(draft.probabilities) < self._bound
