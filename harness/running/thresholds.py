"""Which settings are tried, from text: values of one option, or percentiles of the scores that a strategy shows.

``threshold=q90`` is a threshold that 90 % of the observed scores lie below. Scores are never named, so that third-party
strategies are calibrated like built-in ones: the strategy is asked at many thresholds at every exit point of a few
documents that full depth decodes, and the share of answers that say *exit* is a percentile of its score. These
documents are others than those it is calibrated on, since what is tested must not be chosen by what it is tested on.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from harness.config import StrategySpec, parse_strategies
from harness.config.options import build_strategy, option_range
from harness.contracts import Batch, DraftRule, ExitRule, ExitView, ModelInfo, Strategy
from harness.contracts.asking import ask_rule
from harness.errors import ConfigError
from harness.running.unheard import unheard

__all__ = [
    "THRESHOLD",
    "Family",
    "Shares",
    "SharesOfExits",
    "family",
    "finer",
    "is_percentile",
    "learns",
    "percentiles",
]

logger = logging.getLogger(__name__)

THRESHOLD = "threshold"
"""The option that is calibrated where no other has several values."""

_PERCENTILE = re.compile(r"q(\d+(?:\.\d+)?)")
SHORTEST = 1e-6
"""Distance of the outermost thresholds from the ends of the range, as a share of it."""
FINE = 0.01
"""Share of the scores between the two thresholds around a wanted percentile at most, as far as scores differ."""
DIGITS = ".9g"
"""As thresholds are written."""

Shares = Mapping[float, float]
"""Threshold → share of answers that say exit."""


@dataclass(frozen=True)
class Family:
    """One strategy at several values of one option.

    Attributes:
        spec: the strategy without that option.
        option: its name.
        values: as written, each once; none where percentiles are to be chosen.
        wanted: percentiles of the score, 0…100.
    """

    spec: StrategySpec
    option: str
    values: tuple[str, ...] = ()
    wanted: tuple[float, ...] = ()

    @property
    def observed(self) -> bool:
        """Whether scores have to be observed first."""
        return not self.values

    def at(self, value: str) -> StrategySpec:
        """Return the operating point of one value."""
        return StrategySpec(self.spec.name, (*self.spec.options, (self.option, value)))

    def with_values(self, values: Iterable[str]) -> Family:
        """Return the family at these values."""
        return replace(self, values=tuple(values), wanted=())

    @property
    def texts(self) -> tuple[str, ...]:
        """Its operating points as ``--strategy`` takes them."""
        return tuple(str(self.at(value)) for value in self.values)


def family(text: str, points: int) -> Family:
    """Read what is to be calibrated.

    Args:
        text: ``NAME[:option=value[,value…]]``.
        points: how many percentiles to try where no value is named.

    Raises:
        ConfigError: several options have several values, or there is nothing to vary.
    """
    specs = parse_strategies(text)
    listed: dict[str, dict[str, None]] = {}
    for spec in specs:
        for name, value in spec.options:
            listed.setdefault(name, {})[value] = None
    alone = f"--strategy '{text}': give percentiles of the {THRESHOLD} alone, as q10,q50,q90, or values."
    if any(is_percentile(value) for name, values in listed.items() if name != THRESHOLD for value in values):
        raise ConfigError(alone)
    varied = [name for name, values in listed.items() if len(values) > 1] or [THRESHOLD]
    if len(varied) > 1:
        raise ConfigError(f"--strategy '{text}' lists values of {' and of '.join(varied)}. Calibrate one at a time.")
    option = varied[0]
    rest = tuple((name, value) for name, value in specs[0].options if name != option)
    found = Family(StrategySpec(specs[0].name, rest), option, tuple(listed.get(option, ())))
    if not found.values and option_range(found.spec.name, option) is None:
        raise ConfigError(
            f"--strategy '{text}': {found.spec.name} has no threshold to calibrate. List values of one of its options, "
            "as in fixed:layer=14,22."
        )
    asked = [_PERCENTILE.fullmatch(value) for value in found.values]
    if found.values and not any(asked):
        return found
    if not all(asked) or option != THRESHOLD:
        raise ConfigError(alone)
    wanted = [float(each[1]) for each in asked if each] or [
        100 * place / (points + 1) for place in range(1, points + 1)
    ]
    if not all(0 < each < 100 for each in wanted):
        raise ConfigError(f"--strategy '{text}': percentiles lie between q0 and q100.")
    if option_range(found.spec.name, option) is None:
        raise ConfigError(f"--strategy '{text}': {found.spec.name} has no {THRESHOLD} with a range. Give values.")
    return replace(found, values=(), wanted=tuple(wanted))


def is_percentile(value: str) -> bool:
    """Whether a value is written as a percentile, ``q90``."""
    return _PERCENTILE.fullmatch(value) is not None


def learns(rule: ExitRule) -> bool:
    """Whether a rule learns from what it saw at exits: what it says of a token is then no score of that token alone."""
    if not isinstance(rule, DraftRule) or rule.knows_drafts_alone:
        return False
    return type(rule).verified is not DraftRule.verified


def _below(shares: Shares) -> dict[float, float]:
    """Return the share of scores below each threshold, ascending; where more exits rise with it, low ones are sure."""
    thresholds = sorted(shares)
    rising = shares[thresholds[-1]] > shares[thresholds[0]]
    return {each: shares[each] if rising else 1 - shares[each] for each in thresholds}


def finer(one: Family, shares: Shares) -> tuple[float, ...]:
    """Return thresholds that divide, evenly, each gap that hides a wanted percentile among more than :data:`FINE`."""
    found: list[float] = []
    for (low, less), (high, more) in pairwise(_below(shares).items()):
        if more - less > FINE and any(less < want / 100 < more for want in one.wanted):
            parts = math.ceil(2 * (more - less) / FINE)
            found += [float(f"{low + (high - low) * place / parts:{DIGITS}}") for place in range(1, parts)]
    return tuple(each for each in dict.fromkeys(found) if each not in shares)


def percentiles(one: Family, shares: Shares) -> dict[str, tuple[float, float]]:
    """Return thresholds whose percentiles are nearest to those wanted, as far as scores tell them apart.

    Where several come to the same threshold, a warning says so.

    Args:
        one: that wants them.
        shares: of the answers that say exit, by threshold.

    Returns:
        Threshold, as written → the percentile that was wanted, the first of several that come to the same, and the
        one that it is.

    Raises:
        ConfigError: the threshold decides nothing on the observed tokens.
    """
    if shares[max(shares)] == shares[min(shares)]:
        raise ConfigError(f"{one.spec} decides alike at every {THRESHOLD} on the documents observed. List values.")
    below = _below(shares)
    wanted: dict[float, list[float]] = {}
    for want in one.wanted:
        nearest = min(below, key=lambda each: abs(below[each] - want / 100))
        wanted.setdefault(nearest, []).append(want)
    alike = [
        f"{', '.join(f'q{want:.4g}' for want in wants)} come to {THRESHOLD}={at:{DIGITS}}"
        for at, wants in wanted.items()
        if len(wants) > 1
    ]
    if alike:
        logger.warning("%s: its scores are too much alike: %s, and stand there once", one.spec, "; ".join(alike))
    return {f"{at:{DIGITS}}": (wants[0], round(100 * below[at], 3)) for at, wants in wanted.items()}


@dataclass(frozen=True)
class SharesOfExits(Strategy):
    """Asks a family at many thresholds at once, never exits, and counts who would have.

    Attributes:
        one: the family.
        at: the thresholds; none for a first grid.
        exits: threshold → answers that said exit. asked: answers of each.
    """

    one: Family
    at: tuple[float, ...] = ()
    exits: dict[float, int] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    @property
    def shares(self) -> Shares:
        """Of the answers so far."""
        return {threshold: count / sum(self.asked) for threshold, count in self.exits.items()}

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Those of the strategy."""
        return build_strategy(self.anywhere).exit_points(model)

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Start the strategy at every threshold."""
        thresholds = self.at or self._thresholds()
        rules = {each: build_strategy(self.one.at(repr(each))).start(model, batch) for each in thresholds}
        return _Counting(rules, self.exits, self.asked)

    def should_exit(self, view: ExitView) -> Tensor:
        """Not without a start."""
        raise NotImplementedError

    @property
    def anywhere(self) -> StrategySpec:
        """The family at some threshold."""
        return self.one.at(repr(self._range[1]))

    @property
    def _range(self) -> tuple[float, float]:
        limits = option_range(self.one.spec.name, self.one.option)
        assert limits is not None
        return limits

    def _thresholds(self) -> list[float]:
        """A hundredth of the range apart, and ever closer towards its ends, where scores crowd."""
        low, high = self._range
        close = [0.01 * 10 ** (-place / 5) for place in range(1, 21)]
        places = [place / 100 for place in range(1, 100)] + [end for each in close for end in (each, 1 - each)]
        return sorted(float(f"{low + (high - low) * place:.6g}") for place in places if place >= SHORTEST)


@dataclass(frozen=True)
class _Counting:
    rules: Mapping[float, ExitRule]
    exits: dict[float, int]
    asked: list[int]

    def should_exit(self, view: ExitView) -> Tensor:
        """Ask all, count, and answer no."""
        asked = unheard(view)
        for threshold, rule in self.rules.items():
            self.exits[threshold] = self.exits.get(threshold, 0) + int(ask_rule(rule, asked).sum())
        self.asked.append(len(view.rows))
        return torch.zeros(len(view.rows), dtype=torch.bool, device=view.rows.device)
