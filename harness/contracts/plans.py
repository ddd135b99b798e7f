"""A rule that knows, before a token's first layer, where it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.strategies import ExitView

__all__ = ["PlannedRule", "plan_of"]


class PlannedRule(ABC):
    """A rule that goes by the tokens before, and by no state: rows run straight to their exits, and nobody is asked.

    Subclass it in place of writing ``should_exit``; a strategy that is its own rule is ``(PlannedRule, Strategy)``.
    A check is counted at each exit point on the way all the same, as of a rule that is asked.
    """

    @abstractmethod
    def planned_layer(self, token_ids: Sequence[int]) -> int | None:
        """Return how many layers the next token takes at least: it leaves at the first exit point from there on.

        Args:
            token_ids: what the row has generated so far, drafts included; may be empty.

        Returns:
            A number of layers; ``None`` for all of them.
        """

    def should_exit(self, view: ExitView) -> Tensor:
        """Answer by the plan, for whoever asks."""
        import torch

        planned = [self.planned_layer(tokens) for tokens in view.token_ids]
        return torch.tensor([layer is not None and view.exit_layer >= layer for layer in planned])


def plan_of(rule: object) -> PlannedRule | None:
    """Return a rule that need not be asked; ``None`` for every other, and for one whose class answers anew."""
    planned = isinstance(rule, PlannedRule) and type(rule).should_exit is PlannedRule.should_exit
    return rule if planned else None  # type: ignore[return-value]
