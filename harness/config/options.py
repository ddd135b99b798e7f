"""From a strategy as written to a strategy as built: its options, their ranges and their defaults.

A strategy's options are the fields of its dataclass; their annotations carry range and description
(``Annotated[float, Field(ge=0, le=1, description=…)]``). Values are validated by pydantic, one by one, so
that a message can name the option, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from harness.config import StrategySpec
from harness.config.model import limits
from harness.contracts import Strategy
from harness.errors import OptionError, RegistryError, complaint, did_you_mean
from harness.registry import STRATEGIES

__all__ = ["OptionFacts", "build_strategy", "effective_options", "option_facts", "option_range", "option_value"]


@dataclass(frozen=True, slots=True)
class OptionFacts:
    """One option as ``harness show`` prints it.

    Attributes:
        name: option name.
        kind: type name, for example ``float``.
        limits: allowed range in words; empty when there is none.
        default: default value, ``None`` when it must be given.
        description: what it means.
    """

    name: str
    kind: str
    limits: str
    default: Any
    description: str


def option_value(annotation: Any, value: object) -> Any:
    """Return a value as an option takes it.

    Args:
        annotation: of the option's field, with its range.
        value: as it was given or saved.

    Raises:
        ValueError: it is not allowed; a phrase that says why.
    """
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def build_strategy(spec: StrategySpec) -> Strategy:
    """Build the strategy of one operating point; one that was given as an object is there already.

    Raises:
        UnknownNameError: no such strategy.
        OptionError: no such option, or a value out of range.
    """
    if spec.built is not None:
        _check_strategy_class(spec.name, type(spec.built))
        return spec.built
    cls = _strategy_class(spec.name)
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in _fields(cls) if field.init]
    values: dict[str, Any] = {}
    for name, text in spec.options:
        if name not in names:
            known = f" Options: {', '.join(names)}." if names else " It has none."
            raise OptionError(f"strategy '{spec.name}' has no option '{name}'.{did_you_mean(name, names)}{known}")
        try:
            values[name] = option_value(hints[name], text)
        except ValueError as error:
            raise OptionError(
                f"{spec.name}:{name}={text} is not allowed: {error}. See `harness show {spec.name}`."
            ) from None
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.init and field.name not in values
        and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise OptionError(f"strategy '{spec.name}' needs {', '.join(missing)}. See `harness show {spec.name}`.")
    strategy: Strategy = cls(**values)
    return strategy


def effective_options(strategy: Strategy) -> dict[str, Any]:
    """Return every option with its value."""
    return {field.name: getattr(strategy, field.name) for field in _fields(type(strategy)) if field.init}


def option_facts(name: str) -> list[OptionFacts]:
    """Return the options of a registered strategy.

    Raises:
        UnknownNameError: no such strategy.
    """
    cls = _strategy_class(name)
    hints = get_type_hints(cls, include_extras=True)
    facts = []
    for field in _fields(cls):
        info = FieldInfo.from_annotation(hints[field.name])
        kind = getattr(info.annotation, "__name__", str(info.annotation))
        default = None if field.default is dataclasses.MISSING else field.default
        facts.append(OptionFacts(field.name, kind, limits(info.metadata), default, info.description or ""))
    return facts


def option_range(name: str, option: str) -> tuple[float, float] | None:
    """Return the least and the greatest value an option allows; ``None`` where there is no such option or no end.

    Raises:
        UnknownNameError: no such strategy.
    """
    hint = get_type_hints(_strategy_class(name), include_extras=True).get(option)
    pieces = FieldInfo.from_annotation(hint).metadata if hint is not None else []
    ends = [next((getattr(p, end) for p in pieces if getattr(p, end, None) is not None), None) for end in ("ge", "le")]
    return (float(ends[0]), float(ends[1])) if ends[0] is not None and ends[1] is not None else None


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields of a strategy, those that it shares with others (keyword-only ones) last."""
    return sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True)


def _strategy_class(name: str) -> Any:
    cls = STRATEGIES.load(name)
    _check_strategy_class(name, cls)
    return cls


def _check_strategy_class(name: str, cls: Any) -> None:
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise RegistryError(f"strategy '{name}' is not a dataclass; its fields would be its options.")
    missing = [
        member
        for member in ("rehearsed", "exit_points", "artefacts", "trained_defaults", "start", "should_exit")
        if not hasattr(cls, member)
    ]
    if missing:
        raise RegistryError(
            f"strategy '{name}' lacks {', '.join(missing)}: subclass harness.contracts.Strategy, which brings them."
        )
