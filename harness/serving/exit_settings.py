"""The strategies of a server, and what a request may change about them: numbers and switches, never a path."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from harness.config import BASELINE, StrategySpec, demo_strategies, parse_all
from harness.config.options import effective_options, option_facts, option_range, option_value
from harness.contracts import ModelInfo, Strategy
from harness.errors import ConfigError, HarnessError, did_you_mean
from harness.running.operating_points import build_all, operating_point, usable
from harness.serving.failures import InvalidRequestError
from harness.serving.jobs import Setting

__all__ = ["Loaded", "Settings"]

KEPT_SETTINGS = 256
"""Settings that are kept built. Requests with the same one are asked together where their strategy has no state."""


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

    Attributes:
        loaded: what requests may name, the default first.
        default: the setting of a request that says nothing.

    Raises:
        HarnessError: one of them cannot be had, does not fit the model, or cannot serve.
    """

    def __init__(self, written: Sequence[str], info: ModelInfo) -> None:
        self._info = info
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
        self.default = self._build(first, ())

    def resolve(self, given: Mapping[str, Any] | None) -> Setting:
        """Return the setting of a request: ``{strategy: NAME, option: value…}``; without ``strategy`` the default's.

        Raises:
            InvalidRequestError: not loaded, no such option, out of range, or an option that only the server may set.
        """
        if not given:
            return self.default
        label = given.get("strategy", self.loaded[0].name)
        if not isinstance(label, str) or label not in self._strategies:
            known = did_you_mean(str(label), self._strategies)
            raise InvalidRequestError(
                f"early_exit: strategy '{str(label)[:60]}' is not loaded.{known} Loaded: {', '.join(self._strategies)}."
            )
        values = {name: value for name, value in given.items() if name != "strategy" and value is not None}
        return self._build(label, tuple(sorted(self._checked(label, values).items())))

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

    def _built(self, label: str, values: tuple[tuple[str, Any], ...]) -> Setting:
        name, base = self._strategies[label]
        strategy: Strategy = dataclasses.replace(base, **dict(values))  # type: ignore[type-var]
        try:
            operating_point(StrategySpec(name), strategy, self._info)
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
        return Setting(name, effective, strategy)

    def _facts(self, label: str, *, default: bool) -> Loaded:
        name, strategy = self._strategies[label]
        settable = _settable(type(strategy))
        setting = self._build(label, ())
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
            if strategy.rehearsed:
                raise ConfigError(f"--strategy {spec} looks at the answer before it decides. It cannot serve.")
            operating_point(spec, strategy, info)
    else:
        every = usable(build_all(parse_all(demo_strategies(info.exit_points))), info)
        chosen = [pair for pair in every if not pair[1].rehearsed and pair[0] not in {spec for spec, _ in baseline}]
        chosen.sort(key=lambda pair: (not pair[1].artefacts(info), not pair[1].probabilistic))
        chosen = list({spec.name: (spec, strategy) for spec, strategy in reversed(chosen)}.values())[::-1]
    return [*chosen, *(pair for pair in baseline if pair[1] not in [strategy for _, strategy in chosen])]


@lru_cache(maxsize=64)
def _settable(cls: type[Strategy]) -> dict[str, Any]:
    """Return the options of a strategy that a request may set: option → annotation."""
    hints = get_type_hints(cls, include_extras=True)
    fields = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    return {name: hints[name] for name in fields if _harmless(hints[name])}


def _harmless(hint: Any) -> bool:
    """Whether every value of an annotation is a number, a switch or one of a few words."""
    if get_origin(hint) is Annotated:
        return _harmless(get_args(hint)[0])
    if get_origin(hint) is Literal or hint in (int, float, bool, type(None)):
        return True
    return bool(get_args(hint)) and all(_harmless(part) for part in get_args(hint))
