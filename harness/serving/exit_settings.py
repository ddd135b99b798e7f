"""Choices of a request: a loaded strategy with its options, numbers and switches, never a path; and whether full
depth verifies what exits and a draft source draft.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from harness.config import BASELINE, StrategySpec, demo_strategies, parse_all
from harness.config.decode import (
    DRAFT_MAX,
    LOSSY,
    DecodeSpec,
    check_defers,
    draft_limit,
    parse_decode,
)
from harness.config.options import effective_options, option_facts, option_range, option_value
from harness.config.stops import NO_STOP, build_stop
from harness.contracts import KVPolicy, ModelInfo, Strategy
from harness.errors import ConfigError, HarnessError, did_you_mean
from harness.models.heads import draft_head as found_draft_head
from harness.registry import DRAFTS, KV_POLICIES, STOPS
from harness.running.operating_points import build_all, drafting, operating_point, usable
from harness.serving.completions import InvalidRequestError, Setting

KEPT_SETTINGS = 256
"""Settings that are kept built. Requests with the same one are asked together where their strategy has no state."""


WORDS = ("strategy", "decode", "draft", "draft_max", "stop_rule")
"""Of a request's ``early_exit``: everything else is an option of the strategy."""

MAX_TEXT, MAX_NUMBER = 200, 2**63
"""Characters and size of what an option can be, so that a refusal can name it in a line."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A strategy that requests may name.

    Attributes:
        name: strategy name; as written for the server where two have the same.
        options: value of each option that a request may set: numbers and switches, never paths.
        limits: option → least and greatest value, where it has both.
        descriptions: option → what it means.
        artefacts: trained parts it runs on: name → SHA-256.
        default: whether it is used by requests that name none.
    """

    name: str
    options: dict[str, Any]
    limits: dict[str, tuple[float, float]]
    descriptions: dict[str, str]
    artefacts: dict[str, str]
    default: bool


class Settings:
    """The strategies of a server.

    Args:
        written: as in :attr:`harness.serving.config.ServeConfig.strategies`.
        info: the model.
        decode: of requests that do not say.
        draft_max: tokens of a draft at most, of such requests.
        kv: the server's KV policy.
        draft_head: what reads the tokens that exits draft.
        stop: the stop rule of requests that do not say, as written.

    Attributes:
        loaded: what requests may name, the default first.
        default: the setting of a request that says nothing.
        draft_max: longest draft of a request that says nothing, if it is lossless.
        decodes: ``lossless``, where the KV policy defers, and ``lossy``.
        sources: names of draft sources that lossless requests may name.
        stop: the stop rule of a request that says nothing, as written.

    Raises:
        HarnessError: one of them cannot be had, does not fit the model, or cannot serve.
    """

    def __init__(
        self,
        written: Sequence[str],
        info: ModelInfo,
        decode: DecodeSpec = LOSSY,
        draft_max: int = DRAFT_MAX,
        kv: str = Strategy.default_kv,
        draft_head: str = "auto",
        stop: str = NO_STOP,
    ) -> None:
        self._info, self._kv, self._draft_head = info, kv, str(found_draft_head(draft_head, info))
        self._decode, self.draft_max, self.stop = decode, draft_max, stop
        if (rule := build_stop(stop)) is not None:
            rule.check(info, "")
        policy: type[KVPolicy] = KV_POLICIES.load(kv)
        self.decodes = ("lossless", "lossy") if policy.facts.defers else ("lossy",)
        self.sources = (
            tuple(name for name, made in DRAFTS.usable().items() if made.proposes) if policy.facts.defers else ()
        )
        chosen = _chosen(written, info)
        names = [spec.name for spec, _ in chosen]
        self._strategies: dict[str, tuple[str, Strategy]] = {
            (spec.name if names.count(spec.name) == 1 or names.index(spec.name) == place else str(spec)): (
                spec.name,
                strategy,
            )
            for place, (spec, strategy) in enumerate(chosen)
        }
        self._build = lru_cache(maxsize=KEPT_SETTINGS)(self._built)
        first = next(iter(self._strategies))
        self.loaded = tuple(self._facts(label, default=label == first) for label in self._strategies)
        self.default = self._build(first, (), decode, draft_max, stop)

    def resolve(self, given: Mapping[str, Any] | None) -> Setting:
        """Return the setting of a request, ``{strategy: NAME, option: value…, decode: SPEC, draft: SOURCE, draft_max:
        tokens, stop_rule: RULE}``; what it does not say is the server's default.

        Raises:
            InvalidRequestError: not loaded, no such option, out of range, or an option that only the server may set; or
                lossless under a KV policy that does not defer.
        """
        if not given:
            return self.default
        label = given.get("strategy", self.loaded[0].name)
        if not isinstance(label, str) or label not in self._strategies:
            known = did_you_mean(str(label), self._strategies)
            raise InvalidRequestError(
                f"early_exit: strategy '{str(label)[:60]}' is not loaded.{known} Loaded: {', '.join(self._strategies)}."
            )
        values = {name: value for name, value in given.items() if name not in WORDS and value is not None}
        try:
            decode, draft_max = self._decoding(given)
            stop = self._stopping(given)
        except HarnessError as error:
            raise InvalidRequestError(f"early_exit: {error}") from None
        return self._build(label, tuple(sorted(self._checked(label, values).items())), decode, draft_max, stop)

    def _decoding(self, given: Mapping[str, Any]) -> tuple[DecodeSpec, int]:
        """Return how a request decodes, and its longest draft."""
        said, source, most = (given.get(word) for word in ("decode", "draft", "draft_max"))
        decode = self._decode if said is None else parse_decode(str(said))
        if source is not None:
            if said is not None and decode.sources:
                raise ConfigError(f"decode = '{decode}' names a draft source, and draft = '{source}' does. Give one.")
            decode = parse_decode(f"{'lossless' if decode.lossless else 'lossy'}+{source}")
        if most is not None and not decode.lossless:
            raise ConfigError(
                "draft_max is the longest draft of lossless decoding, and this is lossy. Add decode = lossless."
            )
        if decode.lossless:
            check_defers(self._kv)
        for draft in () if decode is self._decode else decode.sources:
            settable = _settable(DRAFTS.load(draft.name))
            for option in dict(draft.options):
                if option not in settable and option in {facts.name for facts in option_facts(draft.name, DRAFTS)}:
                    raise ConfigError(f"a request cannot set '{option}' of {draft.name}.")
        return decode, self.draft_max if most is None else draft_limit(most)

    def _stopping(self, given: Mapping[str, Any]) -> str:
        """Return the stop rule of a request, as written: never with an option that names a file."""
        said = given.get("stop_rule")
        if said is None:
            return self.stop
        stop = build_stop(str(said))
        if stop is None or stop.written == self.stop:
            return NO_STOP if stop is None else stop.written
        settable = _settable(STOPS.load(stop.name))
        for option in effective_options(stop.rule):
            if option not in settable and f":{option}=" in stop.written:
                raise ConfigError(f"a request cannot set '{option}' of {stop.name}.")
        stop.check(self._info, "")
        return stop.written

    def strategies(self) -> list[Strategy]:
        """Every loaded strategy, as built for the server."""
        return [strategy for _, strategy in self._strategies.values()]

    def _checked(self, label: str, values: Mapping[str, Any]) -> dict[str, Any]:
        name, strategy = self._strategies[label]
        settable = _settable(type(strategy))
        checked = {}
        for option, value in values.items():
            if option not in settable:
                known = ", ".join(settable) or "none"
                raise InvalidRequestError(
                    f"early_exit: a request cannot set '{str(option)[:60]}' of {label}. It can set: {known}."
                )
            try:
                checked[option] = option_value(settable[option], value)
            except ValueError as error:
                raise InvalidRequestError(
                    f"early_exit: {name}:{option}={str(value)[:60]} is not allowed: {error}."
                ) from None
        return checked

    def _built(
        self, label: str, values: tuple[tuple[str, Any], ...], decode: DecodeSpec, draft_max: int, stop: str
    ) -> Setting:
        name, base = self._strategies[label]
        strategy: Strategy = dataclasses.replace(base, **dict(values))  # type: ignore[type-var]
        try:
            lossless = drafting(decode, draft_max, self._draft_head, strategy, self._info)
            kv = None if lossless is None else self._kv
            operating_point(StrategySpec(name), strategy, self._info, kv, decode=decode, lossless=lossless)
            told = effective_options(strategy)
            left_out = strategy.trained_defaults(self._info)
        except HarnessError as error:
            raise InvalidRequestError(f"early_exit: {error}") from None
        settable = _settable(type(strategy))
        effective = {
            option: left_out.get(option) if value is None else value
            for option, value in told.items()
            if option in settable
        }
        return Setting(name, effective, strategy, decode, lossless, build_stop(stop))

    def _facts(self, label: str, *, default: bool) -> Loaded:
        name, strategy = self._strategies[label]
        settable = _settable(type(strategy))
        setting = self._build(label, (), self._decode, self.draft_max, self.stop)
        ranges = {option: option_range(name, option) for option in settable}
        return Loaded(
            name=label,
            options={option: setting.options[option] for option in settable},
            limits={option: limits for option, limits in ranges.items() if limits is not None},
            descriptions={facts.name: facts.description for facts in option_facts(name) if facts.name in settable},
            artefacts=dict(strategy.artefacts(self._info)),
            default=default,
        )


def _chosen(written: Sequence[str], info: ModelInfo) -> list[tuple[StrategySpec, Strategy]]:
    """Return what a server loads, the default first, full depth among it."""
    baseline = build_all([StrategySpec(BASELINE)])
    if written:
        chosen = build_all(parse_all(written))
        for spec, strategy in chosen:
            if strategy.upper_bound:
                raise ConfigError(f"--strategy {spec} looks at the answer before it decides. It cannot serve.")
            operating_point(spec, strategy, info, decode=parse_decode(strategy.default_decode))
    else:
        demo = parse_all(demo_strategies(info.exit_points), in_run=True)
        # How to decode is the server's and each request's, not a strategy's.
        every = usable(build_all([spec for spec in demo if spec.decode is None]), info)
        chosen = [pair for pair in every if not pair[1].upper_bound and pair[0] not in {spec for spec, _ in baseline}]
        chosen.sort(key=lambda pair: (not pair[1].artefacts(info), not pair[1].probabilistic))
        chosen = list({spec.name: (spec, strategy) for spec, strategy in reversed(chosen)}.values())[::-1]
    return [*chosen, *(pair for pair in baseline if pair[1] not in [strategy for _, strategy in chosen])]


@lru_cache(maxsize=64)
def _settable(cls: type) -> dict[str, Any]:
    """Return the options of a strategy or a draft source that a request may set: option → annotation."""
    hints = get_type_hints(cls, include_extras=True)
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    return {name: hints[name] for name in fields if _harmless(hints[name])}


def _harmless(hint: Any) -> bool:
    """Whether every value of an annotation is a number, a switch or one of a few words."""
    if get_origin(hint) is Annotated:
        return _harmless(get_args(hint)[0])
    if get_origin(hint) is Literal or hint in (int, float, bool, type(None)):
        return True
    return bool(get_args(hint)) and all(_harmless(part) for part in get_args(hint))


def read_controls(given: Any) -> Mapping[str, Any] | None:
    """Return a request's ``early_exit`` as a mapping of plain values.

    Args:
        given: an object, its JSON, or the strategy mini-language; ``None`` where nothing was given. ``null`` within
            means not given.

    Raises:
        InvalidRequestError: it is none of these, or has a list, an object or a long text for a value.
    """
    if given is None:
        return None
    read = given
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            read = json.loads(given)
        except (ValueError, RecursionError):
            read = None
    elif isinstance(given, str) and given.strip():
        name, *options = given.split(":")
        pairs = [[part.strip() for part in option.partition("=")] for option in options]
        read = {"strategy": name.strip(), **{key: value for key, _, value in pairs}} if all(map(all, pairs)) else None
    if not isinstance(read, Mapping):
        raise InvalidRequestError(
            f'early_exit = {str(given)[:80]!r} cannot be read. Write {{"strategy": "NAME", "threshold": 0.9}} or '
            '"NAME:threshold=0.9".'
        )
    said = {name: value for name, value in read.items() if value is not None}
    name = said.get("strategy", "")
    if not isinstance(name, str) or len(name) > MAX_TEXT:
        raise InvalidRequestError(f"early_exit.strategy = {str(name)[:60]!r} is no name of a strategy.")
    for option, value in said.items():
        if len(option) > MAX_TEXT or not _is_plain(value):
            raise InvalidRequestError(
                f"early_exit.{option[:60]} = {str(value)[:60]!r} cannot be the value of an option: "
                "give a number, a short text, true or false."
            )
    return said


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    return isinstance(value, int | float) and -MAX_NUMBER <= value <= MAX_NUMBER  # NaN is not
