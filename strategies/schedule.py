"""Exit after fewer layers the longer a completion is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from harness.contracts import ModelInfo, PlannedRule, Strategy
from harness.errors import OptionError


@dataclass(frozen=True)
class Schedule(PlannedRule, Strategy):
    """Exit after a number of layers that falls with the position in the completion.

    Rule: after t tokens the next one leaves at the first exit point of at least
    first − (first − last) · min(t / N, 1)^γ layers; γ = 1 is SkipDecode's linear decay. Cost per check: 0.

    Source: Del Corro et al., "SkipDecode", 2023, arXiv 2307.02628 (a unified exit for each position,
    monotonically decreasing). As depth never rises within a completion, no token reads keys and values that an earlier
    one skipped: it yields the same tokens under every KV policy that keeps a cache. What differs: SkipDecode spends a
    token's layers on the top of the network and bypasses lower ones; here the first layers run, as at every exit. Its N
    is the longest sequence, prompt included; here it is the option ``horizon``, and prompts run all layers. Depth is a
    matter of position alone, so that a batch needs no agreement of its rows, which was the paper's reason.
    """

    first: Annotated[int, Field(ge=1, description="layers at the beginning, t = 0")] = 26
    last: Annotated[int, Field(ge=1, description="layers from the horizon on; at most first")] = 14
    horizon: Annotated[int, Field(ge=1, description="N, tokens until depth no longer falls")] = 30
    power: Annotated[float, Field(gt=0, le=100, description="γ: 1 falls linearly, more stays deep for longer")] = 1.0

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Those that the schedule comes to.

        Raises:
            OptionError: it rises, or does not end at an exit point.
        """
        if self.last > self.first:
            raise OptionError(
                f"schedule:first={self.first}:last={self.last} rises, and a token would read what an earlier one "
                "skipped. Give last at most first."
            )
        model.exit_point(self.last, f"schedule:last={self.last}")
        deepest = next((point for point in model.exit_points if point >= self.first), model.num_layers)
        return tuple(point for point in model.exit_points if self.last <= point <= deepest)

    def planned_layer(self, token_ids: Sequence[int]) -> int:
        """Say how many layers are due."""
        progress: float = min(len(token_ids) / self.horizon, 1.0) ** self.power
        return math.ceil(self.first - (self.first - self.last) * progress)
