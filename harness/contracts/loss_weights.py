"""How much each exit counts in LITE's loss (GREEN-CODE section III-D): the rule alone, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

__all__ = ["WeightsRule", "loss_weights"]

WeightsRule: TypeAlias = Literal["green-code", "uniform"]

_BUDGETS, _LAST_BUDGET, _RATIO = (0.7, 0.2), 0.1, 0.9


def loss_weights(exit_points: Sequence[int], num_layers: int, rule: WeightsRule) -> tuple[float, ...]:
    """Return one loss weight per exit point and one for the last layer; they sum to 1.

    ``green-code`` (section III-D): budgets 0.7 for exits in the first half of the layers and 0.2 for the second,
    geometric with ratio 0.9 inside a half; 0.1 for the last layer. A half without exits leaves its budget to the
    other one. ``uniform``: all alike.
    """
    if rule == "uniform":
        return (1 / (len(exit_points) + 1),) * (len(exit_points) + 1)
    halves = [[p for p in exit_points if p <= num_layers // 2], [p for p in exit_points if p > num_layers // 2]]
    budgets = [budget if half else 0.0 for budget, half in zip(_BUDGETS, halves, strict=True)]
    share = (1 - _LAST_BUDGET) / sum(budgets) if sum(budgets) else 0.0
    weights: list[float] = []
    for half, budget in zip(halves, budgets, strict=True):
        ratios = [_RATIO**place for place in range(len(half))]
        weights += [share * budget * ratio / sum(ratios) for ratio in ratios]
    return (*weights, 1 - sum(weights))
