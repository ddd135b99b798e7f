"""From a strategy, a draft source or a stop rule as written to one as built: options, their ranges and defaults.

The options are the fields of its dataclass; their annotations carry range and description
(``Annotated[float, Field(ge=0, le=1, description=…)]``). Values are validated by pydantic, one by one, so
that a message can name the option, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from harness.config.model import limits
from harness.config.strategies import StrategySpec
from harness.contracts import Strategy
from harness.errors import OptionError, RegistryError, complaint, did_you_mean, reason
from harness.registry import DRAFTS, STOPS, STRATEGIES, Registry

_PROMISES = {
    STRATEGIES.group: (
        "Strategy",
        ("upper_bound", "exit_points", "artefacts", "trained_defaults", "start", "should_exit"),
    ),
    DRAFTS.group: ("DraftSource", ("proposes", "start")),
    STOPS.group: ("Stop", ("check", "artefacts", "start")),
}
"""Classes with options: group → base class, and what a class must have."""

_OF_SEVERAL = (dict, frozenset, list, set, tuple)


@dataclass(frozen=True, slots=True)
class OptionFacts:
    """One option as ``harness show`` prints it.

    Attributes:
        name: option name.
        kind: type name, for example ``float``; of a choice what can be chosen.
        limits: allowed range in words; empty when there is none.
        default: default value; ``None`` where there is none, too.
        description: what it means.
        required: whether it has no default.
    """

    name: str
    kind: str
    limits: str
    default: Any
    description: str
    required: bool = False


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
        _check_class(STRATEGIES, spec.name, type(spec.built))
        return spec.built
    strategy: Strategy = build(STRATEGIES, spec.name, spec.options)
    return strategy


def build(registry: Registry[Any], name: str, options: Iterable[tuple[str, object]]) -> Any:
    """Build what a registered name stands for from its options, text or values.

    Raises:
        UnknownNameError: no such name.
        OptionError: no such option, a value out of range, one without a default that is not given, or options that do
            not go together (the class raises a ``ValueError``).
        RegistryError: what is registered is no dataclass, or lacks what its kind promises.
    """
    cls = _class(registry, name)
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in _fields(cls) if field.init]
    values: dict[str, Any] = {}
    for option, given in options:
        if option not in names:
            known = f" Options: {', '.join(names)}." if names else " It has none."
            raise OptionError(f"{registry.noun} '{name}' has no option '{option}'.{did_you_mean(option, names)}{known}")
        try:
            values[option] = option_value(hints[option], given)
        except ValueError as error:
            annotation = FieldInfo.from_annotation(hints[option]).annotation
            if isinstance(given, str) and (get_origin(annotation) or annotation) in _OF_SEVERAL:
                raise OptionError(
                    f"{name}:{option}={given} is not allowed: {option} holds several values ({annotation}), and what "
                    "is written gives an option one. Leave it out, or set it in Python."
                ) from None
            raise OptionError(f"{name}:{option}={given} is not allowed: {error}. See `harness show {name}`.") from None
    missing = [field.name for field in dataclasses.fields(cls) if _is_required(field) and field.name not in values]
    if missing:
        raise OptionError(f"{registry.noun} '{name}' needs {', '.join(missing)}. See `harness show {name}`.")
    try:
        return cls(**values)
    except ValueError as error:
        raise OptionError(f"{registry.noun} '{name}' refuses its options: {reason(error)}.") from error


def effective_options(built: Any) -> dict[str, Any]:
    """Return every option of a strategy or a draft source with its value."""
    return {field.name: getattr(built, field.name) for field in _fields(type(built)) if field.init}


def option_facts(name: str, registry: Registry[Any] = STRATEGIES) -> list[OptionFacts]:
    """Return the options of a registered strategy, or of a name of another registry that has options.

    Raises:
        UnknownNameError: no such name.
    """
    cls = _class(registry, name)
    hints = get_type_hints(cls, include_extras=True)
    facts = []
    for field in _fields(cls):
        info = FieldInfo.from_annotation(hints[field.name])
        kind = " | ".join(filter(None, get_args(info.annotation))) if get_origin(info.annotation) is Literal else ""
        kind = kind or getattr(info.annotation, "__name__", str(info.annotation))
        default = None if field.default is dataclasses.MISSING else field.default
        given = (field.name, kind, limits(info.metadata), default, info.description or "")
        facts.append(OptionFacts(*given, required=_is_required(field)))
    return facts


def option_range(name: str, option: str) -> tuple[float, float] | None:
    """Return the least and the greatest value an option allows; ``None`` where there is no such option or no end.

    Raises:
        UnknownNameError: no such strategy.
    """
    hint = get_type_hints(_class(STRATEGIES, name), include_extras=True).get(option)
    pieces = FieldInfo.from_annotation(hint).metadata if hint is not None else []
    ends = [next((getattr(p, end) for p in pieces if getattr(p, end, None) is not None), None) for end in ("ge", "le")]
    return (float(ends[0]), float(ends[1])) if ends[0] is not None and ends[1] is not None else None


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields of a strategy, those that it shares with others (keyword-only ones) last."""
    return sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True)


def _class(registry: Registry[Any], name: str) -> Any:
    cls = registry.load(name)
    _check_class(registry, name, cls)
    return cls


def _check_class(registry: Registry[Any], name: str, cls: Any) -> None:
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise RegistryError(f"{registry.noun} '{name}' is not a dataclass; its fields would be its options.")
    base, members = _PROMISES[registry.group]
    missing = [member for member in members if not hasattr(cls, member)]
    if missing:
        raise RegistryError(
            f"{registry.noun} '{name}' lacks {', '.join(missing)}: subclass harness.contracts.{base}, which brings "
            f"{'it' if len(missing) == 1 else 'them'}."
        )
