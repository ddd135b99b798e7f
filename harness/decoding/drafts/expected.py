"""A cost stop: whether one more drafted token pays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import ClassVar

from harness.contracts import Batch, Draft, DraftRule, ModelInfo, UnitCosts
from harness.contracts.drafts import DraftSource


@dataclass(frozen=True)
class Expected(DraftSource):
    """End a draft when one more token would lower the expected tokens per cost; proposes nothing.

    Rule: after k tokens, drafted after layers l₁…l_k with probabilities p₁…p_k under the heads of their exits,
    verifying yields T = 1 + Σ_j p₁·…·p_j tokens for C = Σ_j c(l_j) + c. c is a pass through all layers and the LM head;
    c(l) is l layers, the checks at exit points up to l, the head that reads the draft, and one row more in the pass
    that verifies. Another token like the last one adds p₁·…·p_k·p_k for c(l_k). Verify when that is less per cost than
    T / C.

    What counts over many drafts is tokens per cost of a draft with its verification, so that C holds what is spent
    already. Costs are the model's ``costs``: measured where somebody has, else the bytes of weights read, where checks
    and further rows are free. Probabilities are taken at their word; exits that are too sure of themselves draft too
    long.
    """

    proposes: ClassVar[bool] = False

    def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
        """Take the model's costs."""
        return _Expected(model.costs, model.num_layers)


class _Expected(DraftRule):
    needs_probabilities: ClassVar[bool] = True

    def __init__(self, costs: UnitCosts, num_layers: int) -> None:
        self._deep = costs.deep(num_layers)
        self._tokens = {layer: costs.draft(layer, num_layers) for layer in range(1, num_layers)}

    def verify_now(self, draft: Draft) -> bool:
        stands: list[float] = list(accumulate(draft.probabilities, mul))
        cost = self._deep + sum(self._tokens[layer] for layer in draft.layers)
        more = stands[-1] * draft.probabilities[-1] / self._tokens[draft.layers[-1]]
        return more < (1 + sum(stands)) / cost
