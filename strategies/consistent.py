"""Exit when a policy that was paid for staying right says so: one policy per exit point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from harness.models.controllers import LearnedStrategy, logit


@dataclass(frozen=True)
class Consistent(LearnedStrategy):
    """Exit when π_l(exit | x) ≥ threshold, π_l a small policy network of exit point l on the hidden state.

    The policies maximise E Σ_l P(exit at l) · (1[exit l says what the last layer says] − α (1 − m) l / L), m the
    memorised layer as a share of L: the first exit from which on every exit is right. A hard token (m near 1) is paid
    for being right, an easy one for being early. Cost per check: a small network, no LM head.

    Source: Zeng et al., "ConsistentEE", AAAI 2024, arXiv 2312.11882 (exiting as reinforcement learning; hardness by
    the memorised layer). What differs: the paper samples exits and uses REINFORCE, and trains the classifiers in turn;
    here exits are the model's own, the return is expected over all exits in closed form, and being right is 0 or 1
    where the paper takes the classifier's loss. The authors' code (ZeroNLP/ConsistentEE) counts l in layers, so that
    its α is this one over L, and leaves hardness out for language models. The paper exits where exit is the likelier
    action, ``threshold=0.5``; left out, it is the one that kept 98 % of held-out tokens as the last layer would have
    them, replayed.
    """

    kind: ClassVar[str] = "consistent"
    option: ClassVar[str] = "policies"

    threshold: Annotated[
        float | None,
        Field(ge=0, le=1, description="least probability of exit; the policies' own when left out; 1 never exits"),
    ] = None
    policies: Annotated[str, Field(description="trained policies: a path, a name, or empty for the model's own")] = ""

    def exit_threshold(self, options: Mapping[str, float]) -> float:
        """Compare logits, which spares the sigmoid."""
        return logit(options["threshold"])
