"""Families of settings, from text: values of one option, or percentiles of the scores that a strategy shows.

``threshold=q90`` is a threshold that 90 % of the observed scores lie below, by the share of answers that say *exit* on
few documents that full depth decodes, others than those that are run. Scores are never named.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from harness.appearance.visible_text import shell_word
from harness.config import RunConfig, StrategySpec, parse_all, parse_strategies
from harness.config.options import build_strategy, option_range
from harness.contracts import Batch, DraftRule, ExitRule, ExitView, ModelInfo, Sample, Strategy
from harness.contracts.asking import ask_rule
from harness.decoding.engine import Engine
from harness.errors import ConfigError, DataError
from harness.models.model import KeptModel
from harness.records import ObservedThreshold
from harness.running.operating_points import read_only
from harness.running.plan import Plan, PlannedTask, registered_draw

V = TypeVar("V")

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
    """One strategy, ``spec`` without that option, at several values of one option.

    Attributes:
        values: as written, each once; none where percentiles are to be chosen.
        wanted: percentiles of the score, 0…100.
    """

    spec: StrategySpec
    option: str
    values: tuple[str, ...] = ()
    wanted: tuple[float, ...] = ()

    @property
    def limits(self) -> tuple[float, float]:
        """The range of its option, which has one wherever percentiles are wanted."""
        limits = option_range(self.spec.name, self.option)
        assert limits is not None
        return limits

    def at(self, value: str) -> StrategySpec:
        """Return the operating point of one value."""
        return self.spec.at(self.option, value)

    @property
    def anywhere(self) -> StrategySpec:
        """The operating point of some value, where percentiles are wanted."""
        return self.at(repr(self.limits[1]))


def family(text: str, points: int) -> Family:
    """Read ``NAME[:option=value[,value…]]``; where no value is named, so many percentiles of the threshold."""
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
    found = Family(specs[0].without(option), option, tuple(listed.get(option, ())))
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
    wanted = [float(each[1]) for each in asked if each]
    wanted = wanted or [100 * place / (points + 1) for place in range(1, points + 1)]
    if not all(0 < each < 100 for each in wanted):
        raise ConfigError(f"--strategy '{text}': percentiles lie between q0 and q100.")
    if option_range(found.spec.name, option) is None:
        raise ConfigError(f"--strategy '{text}': {found.spec.name} has no {THRESHOLD} with a range. Give values.")
    return replace(found, values=(), wanted=tuple(wanted))


def numbered(
    specs: Sequence[StrategySpec], numbers: Callable[[Family], Mapping[str, V]]
) -> dict[StrategySpec, V | None]:
    """Return the points of one text with numbers for percentiles, in order, and what is known of each number.

    ``numbers`` returns a family's thresholds as written; points that differ in their threshold alone are one family.
    """
    if not any(is_percentile(value) for spec in specs for _, value in spec.options):
        return dict.fromkeys(specs)
    found: dict[StrategySpec, V | None] = {}
    families: dict[StrategySpec, list[str]] = {}
    for spec in specs:
        values = families.setdefault(spec.without(THRESHOLD), [])
        values += [value for name, value in spec.options if name == THRESHOLD]
    for plain, values in families.items():
        one = family(str(plain.at(THRESHOLD, ",".join(values)) if values else plain), points=1)
        for value, known in numbers(one).items():
            found.setdefault(replace(one.at(value), decode=specs[0].decode), known)
    return found


def any_number(one: Family) -> dict[str, None]:
    """Return some threshold, of which nothing is known, for :func:`numbered`."""
    return {repr(one.limits[1]): None}


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
    """Return thresholds, as written, whose percentiles are nearest to those wanted, with both percentiles.

    Of several that come to the same threshold the first is told.
    """
    if shares[max(shares)] == shares[min(shares)]:
        raise ConfigError(f"{one.spec} decides alike at every {THRESHOLD} on the documents observed. List values.")
    below = _below(shares)
    wanted: dict[float, float] = {}
    for want in one.wanted:
        wanted.setdefault(min(below, key=lambda each: abs(below[each] - want / 100)), want)
    return {f"{at:{DIGITS}}": (want, round(100 * below[at], 3)) for at, want in wanted.items()}


@dataclass(frozen=True)
class SharesOfExits(Strategy):
    """Asks a family at many thresholds at once, never exits, and counts who would have."""

    one: Family
    at: tuple[float, ...]
    exits: Counter[float] = field(default_factory=Counter)
    asked: list[int] = field(default_factory=list)
    rules: dict[float, ExitRule] = field(default_factory=dict)

    @property
    def shares(self) -> Shares:
        """Of the answers so far."""
        return {threshold: self.exits[threshold] / sum(self.asked) for threshold in self.at}

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Those of the strategy."""
        return build_strategy(self.one.anywhere).exit_points(model)

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Start the strategy at every threshold."""
        self.rules.update({each: build_strategy(self.one.at(repr(each))).start(model, batch) for each in self.at})
        return self

    def should_exit(self, view: ExitView) -> Tensor:
        """Ask all, count, and answer no."""
        seen = read_only(view)
        self.exits.update({threshold: int(ask_rule(rule, seen).sum()) for threshold, rule in self.rules.items()})
        self.asked.append(len(view.rows))
        return torch.zeros(len(view.rows), dtype=torch.bool, device=view.rows.device)


def coarse(one: Family) -> tuple[float, ...]:
    """Return thresholds a hundredth of the range apart, and ever closer towards its ends, where scores crowd."""
    low, high = one.limits
    close = [0.01 * 10 ** (-place / 5) for place in range(1, 21)]
    places = [place / 100 for place in range(1, 100)] + [end for each in close for end in (each, 1 - each)]
    return tuple(sorted(float(f"{low + (high - low) * place:.6g}") for place in places if place >= SHORTEST))


OBSERVED = 8
"""Further documents of each task that scores are observed on, where there are as many."""
PASSES = 3
"""Over them at most, each with thresholds between those of the one before, where scores crowd at a percentile."""


def with_numbers(
    config: RunConfig, numbers: Callable[[Family], Mapping[str, ObservedThreshold | None]]
) -> tuple[RunConfig, tuple[ObservedThreshold, ...]]:
    """Replace the percentiles of a configuration, and return what is known of the numbers in their place.

    The same object where there are none.
    """
    strategies: dict[str | Strategy, ObservedThreshold | None] = {}
    for given in config.strategies:
        specs = parse_all([given], in_run=True)
        found = numbered(specs, numbers)
        if list(found) == specs:
            strategies.setdefault(given, None)
            continue
        for spec, known in found.items():
            strategies.setdefault(f"{spec}{'' if spec.decode is None else f'@{spec.decode}'}", known)
    if tuple(strategies) == config.strategies:
        return config, ()
    known_of = tuple(known for known in strategies.values() if known is not None)
    return config.model_copy(update={"strategies": tuple(strategies)}), known_of


def observed_thresholds(
    one: Family, plan: Plan, tasks: Sequence[PlannedTask], count: int, model: KeptModel, stage: Callable[[str], None]
) -> dict[str, ObservedThreshold]:
    """Let full depth decode documents beside those of the tasks, and return a family's thresholds at its percentiles.

    They are as written, each with what was observed of it, on ``count`` documents a task at most.
    """
    info = plan.model.info
    if not info.exit_points:
        raise ConfigError(f"{info.name} has no exit points, where scores could be observed. Give --exit-points.")
    if learns(build_strategy(one.anywhere).start(info, Batch((0,), "cpu"))):
        raise ConfigError(
            f"{one.spec} learns from its own tokens while it decodes, so no {THRESHOLD} of it is a percentile. List "
            f"values: --strategy '{one.at('VALUE,VALUE')}'."
        )
    samples = _further(plan, tasks, one, count)
    documents = sum(map(len, samples))
    stage(f"observing the scores of {one.spec} on {documents} further documents")
    loaded = model.load(plan.model, plan.device, plan.formats, plan.config.threads, stage)[0]
    engine = Engine(loaded.backbone, loaded.info, plan.config.kv_input)
    asked = SharesOfExits(one, coarse(one))
    shares: dict[float, float] = {}
    for _ in range(PASSES):
        for task, drawn in zip(tasks, samples, strict=True):
            for sample in drawn:
                engine.decode(
                    [sample.prompt_ids],
                    asked,
                    kv=asked.default_kv,
                    max_new_tokens=[sample.max_new_tokens],
                    stop=task.stop,
                    eos_token_ids=plan.model.tokenizer.eos_token_ids,
                )
        if not asked.asked:
            raise DataError(f"no token of {documents} documents was decided. Use a larger --max-new-tokens.")
        shares |= asked.shares
        asked = SharesOfExits(one, finer(one, shares))
        if not asked.at:
            break
    return {
        value: ObservedThreshold(
            strategy=str(one.at(value)), threshold=float(value), percentile=wanted, reached=reached, documents=documents
        )
        for value, (wanted, reached) in percentiles(one, shares).items()
    }


def _further(plan: Plan, tasks: Sequence[PlannedTask], one: Family, count: int) -> list[list[Sample]]:
    """Draw documents of each task that are not among those of the run."""
    config = plan.config
    limit = 0 if config.limit is None else config.limit + count
    other = config.model_copy(update={"seed": (config.seed + 1) % 2**32, "limit": limit or None, "skip": 0})
    found = []
    for own, drawn in zip(tasks, registered_draw(other)(plan.model), strict=True):
        taken = {sample.session or sample.sample_id for sample in own.data.samples}
        further = [one for one in drawn.data.samples if (one.session or one.sample_id) not in taken][:count]
        if not further:
            raise DataError(
                f"all {len(taken)} documents of {shell_word(config.source)} are in use, and percentiles are of others. "
                f"Use a --limit below {len(taken)}, or list values: --strategy '{one.at('VALUE,VALUE')}'."
            )
        found.append(further)
    return found
