"""Probes: what asking costs.

A **probe** is an operating point that asks its strategy at every exit point and ignores the answer: full depth plus the
cost of asking. It is what the attribution of costs needs (GREEN-CODE's Table IV was measured by nesting sensor windows
instead, and is contradicted by its own never-exit run), and it is no candidate in any table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, HeadChoice, ModelInfo, PlannedRule, StateTest, Strategy
from harness.contracts.asking import ask_rule
from harness.contracts.plans import plan_of
from harness.contracts.state_tests import state_test_of
from harness.running.unheard import unheard

__all__ = ["NeverExits"]


@dataclass(frozen=True)
class NeverExits(Strategy):
    """Ask a strategy at every exit point it wants, and go on whatever it says.

    Attributes:
        asked: the strategy.
    """

    asked: Strategy

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Those of the strategy."""
        return self.asked.exit_points(model)

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """Those of the strategy."""
        return self.asked.artefacts(model)

    def cheap_heads(self) -> tuple[HeadChoice, ...]:
        """Those of the strategy."""
        return self.asked.cheap_heads()

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, float]:
        """Those of the strategy."""
        return self.asked.trained_defaults(model)

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Start the strategy."""
        rule = self.asked.start(model, batch)
        plan = plan_of(rule)
        return _Deaf(rule) if plan is None else _DeafPlan(plan)

    def should_exit(self, view: ExitView) -> Tensor:
        """Ask the strategy without a start, and answer no."""
        return _Deaf(self.asked).should_exit(view)


@dataclass(frozen=True, slots=True)
class _Deaf:
    rule: ExitRule

    def should_exit(self, view: ExitView) -> Tensor:
        """Ask, and answer no."""
        return torch.zeros_like(ask_rule(self.rule, unheard(view)))

    def state_test(self, points: Sequence[int]) -> StateTest | None:
        """Make the same test, which nothing passes."""
        test = state_test_of(self.rule, points)
        return None if test is None else replace(test, least=math.nan)


@dataclass(frozen=True, slots=True)
class _DeafPlan(PlannedRule):
    plan: PlannedRule

    def planned_layer(self, token_ids: Sequence[int]) -> None:
        """Plan, and take all layers."""
        self.plan.planned_layer(token_ids)
