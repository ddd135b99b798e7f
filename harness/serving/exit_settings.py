"""Choices of a request: a loaded strategy with its options, numbers and switches, never a path; and whether full
depth verifies what exits and a draft source draft.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from harness.config import BASELINE, StrategySpec, demo_strategies, parse_all
from harness.config.decode import DRAFT_MAX, LOSSY, DecodeSpec, check_defers, draft_limit, parse_decode
from harness.config.model import parse_named
from harness.config.options import effective_options, option_facts, option_range, option_value
from harness.config.rules import NONE, build_prompt_rule, build_stop
from harness.contracts import KVPolicy, ModelInfo, Strategy
from harness.errors import ConfigError, HarnessError, did_you_mean
from harness.models.heads import draft_head as found_draft_head
from harness.registry import DRAFTS, KV_POLICIES, STOPS
from harness.running.operating_points import build_all, drafting, operating_point, usable
from harness.serving.completions import InvalidRequestError, Setting

KEPT_SETTINGS = 256  # built; requests with the same one are asked together where their strategy has no state
WORDS = ("strategy", "decode", "draft", "draft_max", "stop_rule")  # everything else is an option of the strategy
MAX_TEXT, MAX_NUMBER = 200, 2**63  # characters and size of an option's value, so that a refusal can name it in a line


@dataclass(frozen=True, slots=True)
class Loaded:
    """A strategy that requests may name; as written for the server where two have the same name."""

    name: str
    options: Mapping[str, Any]  # value of each option that a request may set: numbers and switches, never paths
    limits: Mapping[str, tuple[float, float]]  # option → least and greatest value, where it has both
    descriptions: Mapping[str, str]
    artefacts: Mapping[str, str]  # trained parts it runs on: name → SHA-256
    default: bool


class Settings:
    """The strategies of a server, ``loaded``, and what a request gets that does not say, ``default``.

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
        stop: str = NONE,
        prompt_exit: str = NONE,
    ) -> None:
        self._info, self._kv, self._draft_head = info, kv, str(found_draft_head(draft_head, info))
        self._decode, self.draft_max, self.stop = decode, draft_max, stop
        self._prompt = build_prompt_rule(prompt_exit)
        if (built := build_stop(stop)) is not None:
            built.rule.check(info, "")
        policy: type[KVPolicy] = KV_POLICIES.load(kv)
        defers = policy.facts.defers
        self.decodes = ("lossless", "lossy") if defers else ("lossy",)  # what requests may name
        self.sources = tuple(name for name, made in DRAFTS.usable().items() if defers and made.proposes)
        chosen = _chosen(written, info)
        self._strategies: dict[str, tuple[str, Strategy]] = {}
        for spec, strategy in chosen:
            label = str(spec) if spec.name in self._strategies else spec.name
            self._strategies[label] = spec.name, strategy
        self._build = lru_cache(maxsize=KEPT_SETTINGS)(self._built)
        self.default = self._build(next(iter(self._strategies)), (), decode, draft_max, stop)
        self.loaded = tuple(self._facts(label) for label in self._strategies)

    def resolve(self, early_exit: Any) -> Setting:
        """Return the setting of a request, ``{strategy: NAME, option: value…, decode: SPEC, draft: SOURCE, draft_max:
        tokens, stop_rule: RULE}`` or as :func:`read_controls` reads it; what it does not say is the server's default.
        """
        try:
            given = read_controls(early_exit)
            if not given:
                return self.default
            label = given.get("strategy", next(iter(self._strategies)))
            if not isinstance(label, str) or label not in self._strategies:
                known = f"{did_you_mean(str(label), self._strategies)} Loaded: {', '.join(self._strategies)}."
                raise ConfigError(f"strategy '{str(label)[:60]}' is not loaded.{known}")
            decode, draft_max = self._decoding(given)
            options = self._options(label, given)
            return self._build(label, options, decode, draft_max, self._stopping(given.get("stop_rule")))
        except HarnessError as error:
            raise InvalidRequestError(f"early_exit: {error}") from None

    def strategies(self) -> list[Strategy]:
        """Every loaded strategy, as built for the server."""
        return [strategy for _, strategy in self._strategies.values()]

    def _options(self, label: str, given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """Return the options of a strategy that a request sets, checked."""
        settable = _settable(type(self._strategies[label][1]))
        checked = {}
        for option, value in given.items():
            if option in WORDS:
                continue
            if option not in settable:
                known = ", ".join(settable) or "none"
                raise ConfigError(f"a request cannot set '{str(option)[:60]}' of {label}. It can set: {known}.")
            try:
                checked[option] = option_value(settable[option], value)
            except ValueError as error:
                raise ConfigError(f"{label}:{option}={str(value)[:60]} is not allowed: {error}.") from None
        return tuple(sorted(checked.items()))

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
            _check_settable(draft.name, DRAFTS.load(draft.name), dict(draft.options))
        return decode, self.draft_max if most is None else draft_limit(most)

    def _stopping(self, said: Any) -> str:
        """Return the stop rule of a request, as written."""
        stop = None if said is None else build_stop(str(said))
        if stop is None:
            return self.stop if said is None else NONE
        if stop.written != self.stop:
            written = [option for option in effective_options(stop.rule) if f":{option}=" in stop.written]
            _check_settable(stop.name, STOPS.load(stop.name), written)
            stop.rule.check(self._info, "")
        return stop.written

    def _built(
        self, label: str, values: tuple[tuple[str, Any], ...], decode: DecodeSpec, draft_max: int, stop: str
    ) -> Setting:
        name, base = self._strategies[label]
        strategy: Strategy = dataclasses.replace(base, **dict(values))  # type: ignore[type-var]
        lossless = drafting(decode, draft_max, self._draft_head, strategy, self._info)
        prompt = self._prompt if lossless is None else None
        kv = None if lossless is None and prompt is None else self._kv
        spec, settable = StrategySpec(name), _settable(type(strategy))
        point = operating_point(spec, strategy, self._info, kv, decode=decode, lossless=lossless, prompt=prompt)
        effective = {option: value for option, value in point.record.options.items() if option in settable}
        return Setting(name, effective, strategy, decode, lossless, build_stop(stop), prompt)

    def _facts(self, label: str) -> Loaded:
        name, strategy = self._strategies[label]
        setting = self._build(label, (), self._decode, self.draft_max, self.stop)
        ranges = {option: option_range(name, option) for option in setting.options}
        return Loaded(
            name=label,
            options=setting.options,
            limits={option: limits for option, limits in ranges.items() if limits is not None},
            descriptions={facts.name: facts.description for facts in option_facts(name) if facts.name in ranges},
            artefacts=dict(strategy.artefacts(self._info)),
            default=setting is self.default,
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
        chosen = [pair for pair in every if not pair[1].upper_bound and pair[0].name != BASELINE]
        first = {spec.name: (spec, strategy) for spec, strategy in reversed(chosen)}
        chosen = [*baseline, *reversed(first.values())]
    return [*chosen, *(pair for pair in baseline if pair[1] not in [strategy for _, strategy in chosen])]


@lru_cache(maxsize=64)
def _settable(cls: type) -> dict[str, Any]:
    """Return the options of a strategy, a draft source or a stop rule that a request may set: option → annotation."""
    hints = get_type_hints(cls, include_extras=True)
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    return {name: hints[name] for name in fields if _harmless(hints[name])}


def _check_settable(name: str, cls: type, options: Sequence[str] | Mapping[str, Any]) -> None:
    """Refuse an option of a draft source or a stop rule that a request may not set; one that it lacks is no such."""
    known = {field.name for field in dataclasses.fields(cls)}
    for option in options:
        if option in known and option not in _settable(cls):
            raise ConfigError(f"a request cannot set '{option}' of {name}.")


def _harmless(hint: Any) -> bool:
    """Whether every value of an annotation is a number, a switch or one of a few words."""
    if get_origin(hint) is Annotated:
        return _harmless(get_args(hint)[0])
    if get_origin(hint) is Literal or hint in (int, float, bool, type(None)):
        return True
    return bool(get_args(hint)) and all(_harmless(part) for part in get_args(hint))


def read_controls(given: Any) -> Mapping[str, Any]:
    """Return a request's ``early_exit``, an object, its JSON or the mini-language, as a mapping of plain values."""
    form = 'Write {"strategy": "NAME", "threshold": 0.9} or "NAME:threshold=0.9".'
    read = {} if given is None else given
    if isinstance(given, str) and given.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            read = json.loads(given)
    elif isinstance(given, str):
        named = parse_named(given, f"'{given[:80]}'", "strategy", form)
        read = {"strategy": named.name, **dict(named.options)}
    if not isinstance(read, Mapping):
        raise ConfigError(f"'{str(given)[:80]}' cannot be read. {form}")
    said = {name: value for name, value in read.items() if value is not None}
    for option, value in said.items():
        number = isinstance(value, int | float) and -MAX_NUMBER <= value <= MAX_NUMBER  # NaN is none
        if len(option) > MAX_TEXT or not (number or (isinstance(value, str) and len(value) <= MAX_TEXT)):
            raise ConfigError(
                f"{option[:60]} = {str(value)[:60]!r} cannot be the value of an option: give a number, a short text, "
                "true or false."
            )
    return said
