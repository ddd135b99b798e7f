"""From strategies as written to the operating points of a run: each setting once, in each dimension, with its probe.

What a run compares stands in their names, ``@VALUE`` for each dimension in order (``fixed:layer=14@propagate@int4``);
that a point decodes losslessly, its stop rule and exits for its prompt always do
(``fixed:layer=14@lossless@stop=statement``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import cast

import torch
from torch import Tensor

from harness.config import BASELINE, RunConfig, StrategySpec
from harness.config.decode import LOSSY, DecodeSpec, build_decode, check_defers, parse_decode
from harness.config.options import build_strategy, effective_options
from harness.config.rules import NONE, BuiltRule, BuiltStop, build_prompt_rule, build_stop
from harness.contracts import (
    Batch,
    BlackBox,
    ExitRule,
    ExitView,
    HeadChoice,
    Keep,
    KVFacts,
    Lossless,
    ModelInfo,
    PlannedRule,
    Prefetch,
    PromptRule,
    StateTest,
    Strategy,
)
from harness.contracts.asking import ask_rule
from harness.contracts.strategies import plan_of, state_test_of
from harness.errors import ArtefactError, OptionError
from harness.models.heads import draft_head, head_artefacts
from harness.models.trained import prompt_maps
from harness.records import BlackBoxRecord, OperatingPointRecord
from harness.registry import HEADS, KV_POLICIES

logger = logging.getLogger(__name__)

Built = list[tuple[StrategySpec, Strategy]]


@dataclass(frozen=True)
class OperatingPoint:
    """One strategy at one setting, ready to decode.

    Attributes:
        record: what the run directory says of it.
        kv: name of the KV policy, what happens to K,V of the layers it skips; empty for a black box.
        lossless: how it drafts; ``None`` where its exits say what comes out.
        stop: what ends its completions beside the protocol; ``None`` for nothing.
        keep: which keys and values a request of an editor session leaves to the next; ``None`` of none.
        prompt: how deep its prompts are read; ``None`` for full depth.
    """

    strategy: Strategy
    record: OperatingPointRecord
    kv: str
    lossless: Lossless | None = None
    stop: BuiltStop | None = None
    keep: Keep | None = None
    prompt: BuiltRule[PromptRule] | None = None

    @property
    def name(self) -> str:
        """Unique label in the run."""
        return self.record.name

    @property
    def weights_format(self) -> str:
        """Name of the format of the matrices it multiplies with."""
        return self.record.weights_format


def build_all(specs: Sequence[StrategySpec]) -> Built:
    """Build the strategies of operating points as written."""
    return [(spec, build_strategy(spec)) for spec in specs]


def usable(built: Built, info: ModelInfo) -> Built:
    """Omit strategies that were not asked for by name and that nothing was trained for."""
    kept = []
    for spec, strategy in built:
        try:
            strategy.exit_points(info)
        except ArtefactError:
            logger.info("%s is left out: nothing is trained for it and %s", spec, info.name)
        else:
            kept.append((spec, strategy))
    return kept


def with_baseline(built: Built) -> Built:
    """Return strategies with full depth before them, each once."""
    baseline, kept = StrategySpec(BASELINE), Built()
    for spec, strategy in [*build_all([baseline]), *(pair for pair in built if pair[0] != baseline)]:
        for other, known in kept:
            if other == replace(spec, options=other.options) and known == strategy:
                logger.warning("%s is %s again and left out", spec, other)
                break
        else:
            kept.append((spec, strategy))
    return kept


def operating_points(built: Built, config: RunConfig, models: Sequence[ModelInfo]) -> tuple[OperatingPoint, ...]:
    """Return a run's operating points: as built, full depth first, then the probes.

    What never exits does the same under every KV policy that keeps a cache, so it runs once for those; what looks at
    the answer (the oracle) runs under its own in place of those that are not exact. ``models`` are facts of the model
    in each weights format, the run's own first; a format counts once.
    """
    in_format = {info.weights_format: info for info in reversed(models)}
    formats = tuple(dict.fromkeys(info.weights_format for info in models))
    policies, longest, own = config.kv_policies, config.longest_drafts, models[0]
    points: dict[str, OperatingPoint] = {}
    for spec, strategy in built:
        if isinstance(strategy, BlackBox):
            points.setdefault(str(spec), black_box(spec, strategy))
            continue
        # full depth also runs without a rule: that is what tokens saved are saved from
        full = spec == StrategySpec(BASELINE)
        stops = dict.fromkeys([NONE, *config.stops] if full else config.stops)
        prompts = dict.fromkeys([NONE, *config.prompt_exits] if full else config.prompt_exits)
        kvs = _policies(strategy, policies or (strategy.default_kv,), own)
        for given, decode in product(kvs, _decodes(spec, strategy, config.decodes, own)):
            kv, drafts = given, longest if decode.lossless else longest[:1]
            if decode.lossless and not _facts(kv).defers:
                deferring = [other for other in policies if _facts(other).defers]
                if deferring and _drafts(strategy, own):  # it stands beside this one
                    continue
                kv = next(iter(deferring or policies), Strategy.default_kv)  # refused below if it does not
            for most, stop, keep, prompt, prefetch, weights_format in product(
                drafts, stops, config.keeps, prompts, config.prefetches, formats
            ):
                if prompt != NONE and NONE in prompts and (decode.lossless or not _facts(kv).keeps_cache):
                    continue  # refused; what is read whole stands beside it
                info = in_format[weights_format]
                idle = "" if keep == "none" else _idle(prefetch, shallow=prompt != NONE, recalls=decode.recalls)
                named = (
                    kv if len(policies) > 1 else "",
                    str(decode) if decode.lossless else "",
                    f"draft={most}" if decode.lossless and len(longest) > 1 else "",
                    "" if stop == NONE else f"stop={stop}",
                    f"keep={keep}" if len(config.keeps) > 1 else "",
                    "" if prompt == NONE else f"prompt={prompt}",
                    f"prefetch={idle}" if idle else "",
                    weights_format if len(formats) > 1 else "",
                )
                point = operating_point(
                    spec,
                    strategy,
                    info,
                    kv,
                    suffix="".join(f"@{one}" for one in named if one),
                    decode=decode,
                    lossless=drafting(decode, most, config.draft_head, strategy, info),
                    stop=build_stop(stop),
                    keep=keep,
                    prompt=build_prompt_rule(prompt),
                    prefetch=idle,
                )
                points.setdefault(point.name, point)
    found = list(points.values())
    return (*found, *_probes(found)) if config.attribute else tuple(found)


def black_box(spec: StrategySpec, strategy: BlackBox) -> OperatingPoint:
    """Return the operating point of a black box: there is one, whatever a run compares."""
    if spec.decode is not None:
        raise OptionError(f"{spec}@{spec.decode}: how {spec.name} decodes is its own affair. Leave @{spec.decode} out.")
    record = OperatingPointRecord(
        name=str(spec),
        strategy=spec.name,
        options=effective_options(strategy),
        exit_points=(),
        black_box=BlackBoxRecord(local=strategy.local),
    )
    return OperatingPoint(strategy, record, kv="")


def _decodes(spec: StrategySpec, strategy: Strategy, decodes: Sequence[str], info: ModelInfo) -> Iterator[DecodeSpec]:
    """How a strategy decodes; what drafts nothing of itself is lossy and lossless at once."""
    drafts = _drafts(strategy, info)
    wanted = [parse_decode(text) for text in ([spec.decode] if spec.decode is not None else decodes)]
    own = parse_decode(strategy.default_decode)
    if own.lossless and spec.decode is None:
        wanted = [one for one in wanted if one.lossless] or [own]
    if spec == StrategySpec(BASELINE):  # what every other one is held against
        wanted.insert(0, LOSSY)
    yield from dict.fromkeys(one if drafts or one.proposing else LOSSY for one in wanted)


def _drafts(strategy: Strategy, info: ModelInfo) -> bool:
    """Whether a strategy drafts of itself: at exits, or by layers that it names, which is all that such a one does."""
    return bool(strategy.exit_points(info)) or parse_decode(strategy.default_decode).lossless


def _policies(strategy: Strategy, policies: Sequence[str], info: ModelInfo) -> Iterator[str]:
    cached = False
    for kv in dict.fromkeys(_policy(strategy, kv) for kv in policies):
        if not strategy.exit_points(info) and _facts(kv).keeps_cache:
            if cached:
                continue
            cached = True
        yield kv


def _policy(strategy: Strategy, kv: str | None) -> str:
    """The policy that a strategy runs under where a run names one, or none."""
    if kv is None or (strategy.upper_bound and not _facts(kv).exact):
        return strategy.default_kv
    return kv


def _facts(kv: str) -> KVFacts:
    facts: KVFacts = KV_POLICIES.load(kv).facts
    return facts


def _idle(prefetch: Prefetch, *, shallow: bool, recalls: bool) -> str:
    """Return which of it there is to do for an operating point; empty for nothing."""
    if shallow and prefetch in ("deepen", "all"):
        return "deepen"
    return "draft" if recalls and prefetch in ("draft", "all") else ""


def _probes(points: Sequence[OperatingPoint]) -> Iterator[OperatingPoint]:
    """Return a probe per strategy that is asked anything and format, by the first such point that keeps a cache."""
    seen = set()
    for point in points:
        kind = (point.record.strategy, point.weights_format)
        if kind in seen or not point.record.exit_points or point.strategy.upper_bound or point.lossless:
            continue
        if not _facts(point.kv).keeps_cache:
            continue
        seen.add(kind)
        record = point.record.model_copy(update={"name": f"{point.name} (never exits)", "never_exits": True})
        yield OperatingPoint(NeverExits(point.strategy), record, point.kv)


def drafting(decode: DecodeSpec, draft_max: int, head: str, strategy: Strategy, info: ModelInfo) -> Lossless | None:
    """Return how a strategy drafts, and what reads those tokens; ``None`` where it decodes lossily."""
    lossless = build_decode(decode, draft_max)
    if lossless is None or not _drafts(strategy, info):
        return lossless
    return replace(lossless, head=draft_head(head, info))


def operating_point(
    spec: StrategySpec,
    strategy: Strategy,
    info: ModelInfo,
    kv: str | None = None,
    *,
    suffix: str = "",
    decode: DecodeSpec = LOSSY,
    lossless: Lossless | None = None,
    stop: BuiltStop | None = None,
    keep: Keep | None = None,
    prompt: BuiltRule[PromptRule] | None = None,
    prefetch: str = "",
) -> OperatingPoint:
    """Check a built strategy against a model in one weights format; ``suffix`` follows the specification in the name.

    Without ``kv`` it runs under its own default, which one that looks at the answer has in place of any that is not
    exact, too. Whether a stop rule can end its completions is :meth:`harness.contracts.Stop.check`'s to say.
    """
    policy = _policy(strategy, kv)
    if lossless is not None:
        check_defers(policy)
    elif parse_decode(strategy.default_decode).lossless and not decode.lossless:
        raise OptionError(
            f"{spec}@{decode}: {spec.name} only drafts, and its tokens have to be verified. Decode it "
            f"losslessly: {spec}@{strategy.default_decode} in a run, else --decode {strategy.default_decode}."
        )
    if prompt is not None and (lossless is not None or not _facts(policy).keeps_cache):
        what = "lossless decoding yields full depth's tokens" if lossless is not None else f"--kv {policy} keeps none"
        raise OptionError(
            f"--prompt-exit {prompt.written} leaves keys and values that are not full depth's, and {what}. "
            "Use --prompt-exit none."
        )
    points = tuple(strategy.exit_points(info))
    if list(points) != sorted(set(points) & set(info.exit_points)):
        raise OptionError(
            f"{spec} asks to stop after layers {points}, which are not sorted exit points of {info.name} "
            f"(exit points: {', '.join(map(str, info.exit_points)) or 'none'})."
        )
    heads = [*strategy.cheap_heads(), *([] if lossless is None or lossless.head.is_full else [lossless.head])]
    record = OperatingPointRecord(
        name=f"{spec}{suffix}",
        strategy=spec.name,
        options=effective_options(strategy, strategy.trained_defaults(info)),
        exit_points=points,
        rehearsed=strategy.upper_bound,
        artefacts={
            **strategy.artefacts(info),
            **({} if lossless is None else head_artefacts(lossless.head, info)),
            **({} if stop is None else stop.rule.artefacts(info)),
            **({} if prompt is None else prompt_maps(prompt.rule.exits(info), info)),
        },
        kv=policy,
        kv_facts=_facts(policy),
        decode=str(decode),
        draft_max=None if lossless is None else lossless.draft_max,
        draft_sources=() if lossless is None else decode.proposing,
        stop="" if stop is None else stop.written,
        keep=keep or "",
        prompt_exit="" if prompt is None else prompt.written,
        prefetch=prefetch,
        weights_format=info.weights_format,
        heads={str(choice): HEADS.load(choice.name).facts.note for choice in heads},
    )
    return OperatingPoint(strategy, record, policy, lossless, stop, keep, prompt)


@dataclass(frozen=True)
class NeverExits(Strategy):
    """A probe: asks a strategy at every exit point it wants, and goes on whatever it answers."""

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
        return _NeverExit(rule) if plan is None else _NeverExitPlan(plan)

    def should_exit(self, view: ExitView) -> Tensor:
        """Ask the strategy without a start, and answer no."""
        return _NeverExit(self.asked).should_exit(view)


@dataclass(frozen=True, slots=True)
class _NeverExit:
    rule: ExitRule

    def should_exit(self, view: ExitView) -> Tensor:
        """Ask, and answer no."""
        return torch.zeros_like(ask_rule(self.rule, read_only(view)))

    def state_test(self, points: Sequence[int]) -> StateTest | None:
        """Make the same test, which nothing passes."""
        test = state_test_of(self.rule, points)
        return None if test is None else replace(test, threshold=math.nan)


@dataclass(frozen=True, slots=True)
class _NeverExitPlan(PlannedRule):
    plan: PlannedRule

    def planned_layer(self, token_ids: Sequence[int]) -> None:
        """Plan, and take all layers."""
        self.plan.planned_layer(token_ids)


def read_only(view: ExitView) -> ExitView:
    """Return a view like another that ends nothing: ``stop`` does nothing on it, and rows that do not exit go on."""
    return cast("ExitView", _ReadOnly(view))


class _ReadOnly:
    """Implements :class:`harness.contracts.ExitView`."""

    def __init__(self, view: ExitView) -> None:
        self._view = view

    def __getattr__(self, name: str) -> object:
        return getattr(self._view, name)

    def stop(self, rows: Tensor) -> None:
        """Do nothing."""

    def part(self, places: list[int]) -> ExitView:
        """Return the read-only view of some rows."""
        return read_only(self._view.part(places))
