"""The bases of strategies that use trained artefacts: their search, record and defaults, and a controller's rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import ClassVar, get_type_hints

import torch
from torch import Tensor

from harness.config.options import option_value
from harness.contracts import Batch, ExitRule, ExitView, ModelInfo, StateTest, Strategy
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact
from harness.models.controllers.controller import Controller, Scorer, find_controller
from harness.models.trained import find_trained


@dataclass(frozen=True)
class TrainedStrategy(Strategy):
    """A strategy that runs on something trained, which is found for the model and checked against it.

    A subclass is a frozen dataclass that declares its options: ``threshold``, and one that tells which artefact to use
    (:attr:`option`).

    Attributes:
        kind: artefact kind, which is the name of the recipe that trains it.
        option: option that names the artefact: a path, a name, or empty for the model's own.
        part: what a run's record calls the artefact; empty for ``kind``.
        needed: facts that the artefact must have, besides those by which it knows its model.
        threshold: ``None`` for the one the artefact was saved with.
    """

    kind: ClassVar[str]
    option: ClassVar[str]
    part: ClassVar[str] = ""
    needed: ClassVar[tuple[str, ...]] = ("threshold",)

    threshold: float | None = None

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Every exit point of the model, once the artefact is found and checked."""
        self.artefact(model)
        return model.exit_points

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """The artefact."""
        return {self.part or self.kind: self.artefact(model).sha256}

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, float]:
        """The artefact's own threshold."""
        return {"threshold": self.artefact(model).facts["threshold"]}

    def settings(self, model: ModelInfo) -> dict[str, float]:
        """Return the options of :meth:`trained_defaults`, as given or else the artefact's own."""
        options = dict(self.trained_defaults(model))
        return options | {name: value for name in options if (value := getattr(self, name)) is not None}

    def artefact(self, model: ModelInfo) -> Artefact:
        """Find the artefact and check it against the model, and what it was saved with against the options' ranges."""
        found = self._find(model)
        _check_saved(type(self), found)
        return found

    def _find(self, model: ModelInfo) -> Artefact:
        return find_trained(self.kind, getattr(self, self.option), model, self.needed)


@dataclass(frozen=True)
class LearnedStrategy(TrainedStrategy):
    """Exit where a trained controller's score reaches a threshold."""

    def exit_threshold(self, options: Mapping[str, float]) -> float:
        """Return the score from which a token exits."""
        return options["threshold"]

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Load the controller; loaded once, however many batches there are."""
        return _rule(self.controller(model).scorer(batch.device), self.exit_threshold(self.settings(model)))

    def controller(self, model: ModelInfo) -> Controller:
        """Return the controller of :meth:`artefact`."""
        self.artefact(model)
        return find_controller(self.kind, getattr(self, self.option), model)

    def _find(self, model: ModelInfo) -> Artefact:
        return find_controller(self.kind, getattr(self, self.option), model).artefact


def logit(probability: float) -> float:
    """Return the logit that a probability is reached from, which spares the sigmoid: of 0 any, of 1 none."""
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


@lru_cache(maxsize=64)
def _check_saved(strategy: type[TrainedStrategy], artefact: Artefact) -> None:
    hints = get_type_hints(strategy, include_extras=True)
    for field in fields(strategy):
        if field.name in artefact.facts:
            value = artefact.facts[field.name]
            try:
                option_value(hints[field.name], value)
            except ValueError as error:
                raise ArtefactError(
                    f"{artefact.path} was saved with {field.name} {value}, which is not allowed: {error}. "
                    "Train it again."
                ) from None


@dataclass(frozen=True, eq=False)
class AtLeast:
    """Exit where a score reaches a threshold."""

    score: Scorer
    threshold: float

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare the score."""
        return self.score(view) >= self.threshold

    def state_test(self, points: Sequence[int]) -> StateTest:
        """Return the same for compiled layers."""
        return StateTest(self.score.scores(points), self.threshold, self.score.observation.state)


_rule = lru_cache(maxsize=128)(AtLeast)
"""One object per setting: it has no state, so that rows of several requests can be asked together."""


def candidate_features(logits: Tensor, before: Tensor | None) -> Tensor:
    """Return logits, their softmax among themselves and its change since the exit before, ``[n, k]`` → ``[n, 3k]``."""
    shares = logits.softmax(-1)
    change = torch.zeros_like(shares) if before is None else shares - before.softmax(-1)
    return torch.cat((logits, shares, change), dim=-1)
