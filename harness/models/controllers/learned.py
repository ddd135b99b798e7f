"""What strategies that run on a trained controller share: its search, its record, its defaults, and one rule object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import ClassVar, get_type_hints

from torch import Tensor

from harness.config.options import option_value
from harness.contracts import Batch, ExitRule, ExitView, ModelInfo, Strategy
from harness.errors import ArtefactError
from harness.models.controllers.controller import Controller, Scorer, find_controller

__all__ = ["LearnedStrategy"]


@dataclass(frozen=True)
class LearnedStrategy(Strategy):
    """Exit where a trained controller's score reaches a least value.

    A subclass is a frozen dataclass that declares its options: ``threshold``, and one that tells which artefact to use
    (:attr:`option`); and :meth:`least`, which turns options into a score.

    Attributes:
        kind: artefact kind, which is the name of the recipe that trains it.
        option: option that names the artefact: a path, a name, or empty for the model's own.
        part: what a run's record calls the artefact; empty for ``kind``.
        threshold: ``None`` for the one the artefact was saved with.
    """

    kind: ClassVar[str]
    option: ClassVar[str]
    part: ClassVar[str] = ""

    threshold: float | None = None

    def least(self, options: Mapping[str, float]) -> float:
        """Return the score from which a token exits.

        Args:
            options: those of :meth:`trained_defaults`, as given or else the artefact's own.
        """
        return options["threshold"]

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Every exit point of the model, once the controller is found and checked."""
        self.controller(model)
        return model.exit_points

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """The controller."""
        return {self.part or self.kind: self.controller(model).artefact.sha256}

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, float]:
        """The controller's own threshold."""
        return {"threshold": self.controller(model).artefact.facts["threshold"]}

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Load the controller; loaded once, however many batches there are."""
        options = dict(self.trained_defaults(model))
        options |= {name: value for name in options if (value := getattr(self, name)) is not None}
        return _rule(self.controller(model).scorer(batch.device), self.least(options))

    def controller(self, model: ModelInfo) -> Controller:
        """Find the controller and check it against the model, and what it was saved with against the options' ranges.

        Raises:
            ArtefactError: as :func:`find_controller`, or it was saved with an option that the strategy does not allow.
        """
        found = find_controller(self.kind, getattr(self, self.option), model)
        _check_saved(type(self), found)
        return found


@lru_cache(maxsize=64)
def _check_saved(strategy: type[LearnedStrategy], controller: Controller) -> None:
    hints = get_type_hints(strategy, include_extras=True)
    for field in fields(strategy):
        if field.name in controller.artefact.facts:
            value = controller.artefact.facts[field.name]
            try:
                option_value(hints[field.name], value)
            except ValueError as error:
                raise ArtefactError(
                    f"{controller.artefact.path} was saved with {field.name} {value}, which is not allowed: {error}. "
                    "Train it again."
                ) from None


@lru_cache(maxsize=128)
def _rule(score: Scorer, least: float) -> ExitRule:
    """One object per setting: it has no state, so that rows of several requests can be asked together."""
    return _AtLeast(score, least)


@dataclass(frozen=True, slots=True)
class _AtLeast:
    score: Scorer
    least: float

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare the score."""
        return self.score(view) >= self.least
