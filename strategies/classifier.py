"""Exit when a trained classifier says that the answer is already there: one head per exit point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, ModelInfo, Strategy
from harness.models.controllers import Controller, Scorer, find_controller

__all__ = ["Classifier"]


@dataclass(frozen=True)
class Classifier(Strategy):
    """Exit when σ(f_l(x)) ≥ threshold, f_l a small network of exit point l on the hidden state, without the LM head.

    The shipped heads also see its change since the previous exit point (three numbers, ``--observation rich``). The
    label they learned is 1 where the exit's token is the last layer's. CALM (Schuster 2022, arXiv 2207.07061,
    section 3.2) has a linear f_l on h_l; ``harness train classifier --hidden 0 --observation paper`` gives that one.
    The LM head runs only where a token exits, so a check reads a fiftieth of a layer's bytes. The heads' own threshold
    kept 98 % of held-out tokens as the last layer would have them, replayed.
    """

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

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Every exit point of the model, once its heads are found and checked."""
        self._find(model)
        return model.exit_points

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """The heads."""
        return {"classifier": self._find(model).artefact.sha256}

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, float]:
        """The heads' own."""
        facts = self._find(model).artefact.facts
        return {"threshold": facts["threshold"]}

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Load the heads; loaded once, however many batches there are."""
        heads = self._find(model)
        threshold = heads.artefact.facts["threshold"] if self.threshold is None else self.threshold
        return _rule(heads.scorer(batch.device), _logit(threshold))

    def _find(self, model: ModelInfo) -> Controller:
        return find_controller("classifier", self.heads, model)


@lru_cache(maxsize=64)
def _rule(score: Scorer, least: float) -> _AtLeast:
    """One object per setting: it has no state, so that rows of several requests can be asked together."""
    return _AtLeast(score, least)


@dataclass(frozen=True, slots=True)
class _AtLeast:
    score: Scorer
    least: float

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare logits, which spares the sigmoid."""
        return self.score(view) >= self.least


def _logit(probability: float) -> float:
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))
