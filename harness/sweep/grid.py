"""Which settings to try: those given, or thresholds at quantiles of the observed scores.

A strategy is asked about a few thousand traced tokens at a threshold, and the share of its answers that say *exit* is
a quantile of its score, whatever the score is and in which direction it counts. Bisection finds the threshold of every
wanted share. No score is ever named, so that third-party strategies are swept like built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from harness.config import StrategySpec
from harness.config.options import build_strategy, option_range
from harness.contracts import ModelInfo
from harness.errors import ConfigError
from harness.running.operating_points import OperatingPoint, operating_point
from harness.sweep.replay_strategy import answers
from harness.sweep.tokens import TracedTokens
from harness.sweep.view import Charges

__all__ = ["SWEPT", "asks_for_thresholds", "with_thresholds"]

SWEPT = "threshold"
"""The option that is swept where no value is given for it."""

HALVINGS = 40
DIGITS = range(2, 10)


def asks_for_thresholds(spec: StrategySpec) -> bool:
    """Whether a strategy has a threshold with a range, and none is given."""
    return all(name != SWEPT for name, _ in spec.options) and option_range(spec.name, SWEPT) is not None


def with_thresholds(spec: StrategySpec, count: int, tokens: TracedTokens, model: ModelInfo) -> list[StrategySpec]:
    """Return the spec at so many thresholds, from the fewest exits to the most; fewer where scores coincide.

    Args:
        spec: one that :func:`asks_for_thresholds`.
        count: how many; they leave equal shares of the scores between them.
        tokens: on which scores are observed.
        model: facts.

    Raises:
        ConfigError: the threshold decides nothing on these tokens.
    """
    limits = option_range(spec.name, SWEPT)
    assert limits is not None
    seen: dict[str, float] = {}

    def share(threshold: str) -> float:
        if threshold not in seen:
            point = operating_point(_at(spec, threshold), build_strategy(_at(spec, threshold)), model)
            seen[threshold] = _share_of_exits(point, tokens, model)
        return seen[threshold]

    ends = sorted(map(repr, limits), key=share)
    fewest, most = (share(end) for end in ends)
    if fewest == most:
        raise ConfigError(
            f"{spec} decides alike at {SWEPT}={ends[0]} and {SWEPT}={ends[1]} on this trace; name values to sweep: "
            f"--strategy '{spec}:{SWEPT}=VALUE,VALUE'."
        )
    wanted = [fewest + (most - fewest) * place / (count + 1) for place in range(1, count + 1)]
    found = [
        _threshold(float(ends[0]), float(ends[1]), target, share, (most - fewest) / (count + 1) / 10)
        for target in wanted
    ]
    return [_at(spec, threshold) for threshold in dict.fromkeys(found)]


def _threshold(few: float, many: float, target: float, share: Callable[[str], float], slack: float) -> str:
    """Return the shortest decimal whose share of exits is near ``target``, between two thresholds around it."""
    middle = (few + many) / 2
    for _ in range(HALVINGS):
        middle = (few + many) / 2
        here = share(repr(middle))
        if abs(here - target) <= slack / 2:
            break
        few, many = (middle, many) if here < target else (few, middle)
    for digits in DIGITS:
        short = f"{middle:.{digits}g}"
        if abs(share(short) - share(repr(middle))) <= slack:
            return short
    return repr(middle)


def _share_of_exits(point: OperatingPoint, tokens: TracedTokens, model: ModelInfo) -> float:
    decided = [answer for _, answer in answers(point, tokens, model, Charges(len(tokens)))]
    return torch.stack(decided).float().mean().item() if decided else 0.0


def _at(spec: StrategySpec, threshold: str) -> StrategySpec:
    return StrategySpec(spec.name, (*spec.options, (SWEPT, threshold)))
