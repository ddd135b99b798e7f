"""Exit when a learned certainty is high enough: one head shared by all exit points."""

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

__all__ = ["LearnToExit"]


@dataclass(frozen=True)
class LearnToExit(Strategy):
    """Exit when g(x) ≥ threshold, g one small network for all exit points that regresses their certainty.

    BERxiT's learning-to-exit module (Xin 2021, EACL, section 4.2): the certainty of an exit is 1 where its answer is
    right and 0 elsewhere, fitted by mean squared error. Here an answer is right when it is the last layer's. The score
    is an estimate of that certainty and may lie a little outside 0…1.
    """

    probabilistic: ClassVar[bool] = True

    threshold: Annotated[
        float | None,
        Field(ge=0, le=2, description="least certainty; the head's own when left out; 2 never exits"),
    ] = None
    heads: Annotated[str, Field(description="trained head: a path, a name, or empty for the model's own")] = ""

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Every exit point of the model, once its head is found and checked."""
        self._find(model)
        return model.exit_points

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """The head."""
        return {"lte": self._find(model).artefact.sha256}

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, float]:
        """The head's own."""
        facts = self._find(model).artefact.facts
        return {"threshold": facts["threshold"]}

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Load the head; loaded once, however many batches there are."""
        head = self._find(model)
        threshold = head.artefact.facts["threshold"] if self.threshold is None else self.threshold
        never = threshold >= 2  # a regression may score anything
        return _rule(head.scorer(batch.device), math.inf if never else threshold)

    def _find(self, model: ModelInfo) -> Controller:
        return find_controller("lte", self.heads, model)


@lru_cache(maxsize=64)
def _rule(score: Scorer, least: float) -> _AtLeast:
    """One object per setting: it has no state, so that rows of several requests can be asked together."""
    return _AtLeast(score, least)


@dataclass(frozen=True, slots=True)
class _AtLeast:
    score: Scorer
    least: float

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare the certainty."""
        return self.score(view) >= self.least
