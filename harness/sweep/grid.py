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
from harness.running.thresholds import family, is_percentile
from harness.sweep.replay_strategy import answers
from harness.sweep.tokens import TracedTokens
from harness.sweep.view import Charges

SWEPT = "threshold"
"""The option that is swept where no value is given for it."""

HALVINGS = 40
DIGITS = range(2, 10)


def asks_for_thresholds(spec: StrategySpec) -> bool:
    """Whether a strategy has a threshold with a range, and none is given."""
    return all(name != SWEPT for name, _ in spec.options) and option_range(spec.name, SWEPT) is not None


def without_percentile(spec: StrategySpec) -> tuple[StrategySpec, float | None]:
    """Return a spec as it can be built: without a threshold that is a percentile, which is returned beside it.

    Raises:
        ConfigError: it is a percentile of what is no score, or none between 0 and 100.
    """
    if not any(is_percentile(value) for _, value in spec.options):
        return spec, None
    one = family(str(spec), points=1)
    return one.spec, one.wanted[0]


def at_percentile(spec: StrategySpec, percentile: float, tokens: TracedTokens, model: ModelInfo) -> StrategySpec:
    """Return the spec at the threshold that so many per cent of the scores on some tokens lie below.

    Args:
        spec: without a threshold.
        percentile: 0…100.
        tokens: others than those that are replayed.
        model: facts.

    Raises:
        ConfigError: the threshold decides nothing on these tokens.
    """
    rising, share, ends = _shares(spec, tokens, model)
    target = percentile / 100 if rising else 1 - percentile / 100  # a low score is sure where more exits rise with it
    few, many = (float(end) for end in ends)
    return _at(spec, _threshold(few, many, target, share, 1e-3))


def with_thresholds(
    spec: StrategySpec, count: int, tokens: TracedTokens, model: ModelInfo, *, refuse: bool = True
) -> list[StrategySpec]:
    """Return the spec at so many thresholds, from the fewest exits to the most; fewer where scores coincide.

    Args:
        spec: one that :func:`asks_for_thresholds`.
        count: how many; they leave equal shares of the scores between them.
        tokens: on which scores are observed.
        model: facts.
        refuse: where the threshold decides nothing; else there is no setting to return.

    Raises:
        ConfigError: the threshold decides nothing on these tokens.
    """
    try:
        _, share, ends = _shares(spec, tokens, model)
    except ConfigError:
        if refuse:
            raise
        return []
    fewest, most = (share(end) for end in ends)
    wanted = [fewest + (most - fewest) * place / (count + 1) for place in range(1, count + 1)]
    found = [
        _threshold(float(ends[0]), float(ends[1]), target, share, (most - fewest) / (count + 1) / 10)
        for target in wanted
    ]
    return [_at(spec, threshold) for threshold in dict.fromkeys(found)]


def _shares(
    spec: StrategySpec, tokens: TracedTokens, model: ModelInfo
) -> tuple[bool, Callable[[str], float], list[str]]:
    """Return whether exits rise with the threshold, the share of exits at one, and both ends, from fewest to most."""
    limits = option_range(spec.name, SWEPT)
    assert limits is not None
    seen: dict[str, float] = {}

    def share(threshold: str) -> float:
        if threshold not in seen:
            point = operating_point(_at(spec, threshold), build_strategy(_at(spec, threshold)), model)
            seen[threshold] = _share_of_exits(point, tokens, model)
        return seen[threshold]

    ends = sorted(map(repr, limits), key=share)
    if share(ends[0]) == share(ends[1]):
        raise ConfigError(
            f"{spec} decides alike at {SWEPT}={ends[0]} and {SWEPT}={ends[1]} on this trace; name values to sweep: "
            f"--strategy '{spec}:{SWEPT}=VALUE,VALUE'."
        )
    return float(ends[1]) > float(ends[0]), share, ends


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
