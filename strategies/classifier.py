"""Exit when a trained classifier says that the answer is already there: one head per exit point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from harness.models.controllers import LearnedStrategy, logit


@dataclass(frozen=True)
class Classifier(LearnedStrategy):
    """Exit when σ(f_l(x)) ≥ threshold, f_l a small network of exit point l on the hidden state, without the LM head.

    The shipped heads also see its change since the previous exit point (three numbers, ``--observation rich``). The
    label they learned is 1 where the exit's token is the last layer's. CALM (Schuster 2022, arXiv 2207.07061,
    section 3.5) has a linear f_l on h_l; ``harness train classifier --hidden 0 --observation paper`` gives that one.
    The LM head runs only where a token exits, so a check reads a fiftieth of a layer's bytes. The heads' own threshold
    kept 98 % of held-out tokens as the last layer would have them, replayed.
    """

    kind: ClassVar[str] = "classifier"
    option: ClassVar[str] = "heads"
    probabilistic: ClassVar[bool] = True

    threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="least probability of the last layer's token; the heads' own when left out; 1 never exits",
        ),
    ] = None
    heads: Annotated[str, Field(description="trained heads: a path, a name, or empty for the model's own")] = ""

    def exit_threshold(self, options: Mapping[str, float]) -> float:
        """Compare logits, which spares the sigmoid."""
        return logit(options["threshold"])
