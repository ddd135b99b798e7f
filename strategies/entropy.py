"""Exit on the entropy of the prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from harness.contracts import ExitView
from harness.models.heads import ReadsHead


@dataclass(frozen=True)
class Entropy(ReadsHead):
    """Exit when the entropy of the prediction, relative to its maximum, falls below a threshold.

    Rule: H(p_l) / log V < τ, V the size of the vocabulary. Lower score = more certain. Cost per check: one evaluation
    of the LM head, or of the cheap head that ``head`` names, and one pass over its tokens. Of a cheap head H is a lower
    bound: what it does not read counts as one token.

    Source: Xin et al., "DeeBERT", ACL 2020, arXiv 2004.12993, section 3.3. Deviation: divided by log V, so that
    one τ means the same for every vocabulary.
    """

    threshold: Annotated[float, Field(ge=0, le=1, description="τ, entropy over log V")] = 0.1

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare normalised entropy with τ."""
        return self.reading(view).entropy / math.log(view.vocab_size) < self.threshold
