"""From a strategy, draft source, stop rule or prompt rule as written to one as built: options, ranges and defaults.

The options are the fields of its dataclass; their annotations carry range and description
(``Annotated[float, Field(ge=0, le=1, description=…)]``). Values are validated by pydantic, one by one, so
that a message can name the option, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from harness.config.model import limits
from harness.config.strategies import StrategySpec
from harness.contracts import Strategy
from harness.errors import OptionError, RegistryError, complaint, did_you_mean, reason
from harness.registry import DRAFTS, PROMPT_RULES, STOPS, STRATEGIES, Registry

_PROMISES = {
    STRATEGIES.group: (
        "Strategy",
        ("upper_bound", "exit_points", "artefacts", "trained_defaults", "start", "should_exit"),
    ),
    DRAFTS.group: ("DraftSource", ("proposes", "start")),
    STOPS.group: ("Stop", ("check", "artefacts", "start")),
    PROMPT_RULES.group: ("PromptRule", ("exits", "depths")),
}
"""Classes with options: group → base class, and what a class must have."""


@dataclass(frozen=True, slots=True)
class OptionFacts:
    """One option as ``harness show`` prints it: type, or what can be chosen, range, default and meaning."""

    name: str
    kind: str
    limits: str
    default: Any
    description: str
    required: bool = False


def option_value(annotation: Any, value: object) -> Any:
    """Return a value as an option takes it."""
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def build_strategy(spec: StrategySpec) -> Strategy:
    """Build the strategy of one operating point; one that was given as an object is there already."""
    if spec.built is not None:
        return _checked(STRATEGIES, spec.name, type(spec.built)) and spec.built
    strategy: Strategy = build(STRATEGIES, spec.name, spec.options)
    return strategy


def build(registry: Registry[Any], name: str, options: Iterable[tuple[str, object]]) -> Any:
    """Build what a registered name stands for from its options, text or values."""
    return build_class(_checked(registry, name), registry.noun, name, options, f"See `harness show {name}`.")


def build_class(cls: Any, noun: str, name: str, options: Iterable[tuple[str, object]], remedy: str) -> Any:
    """Build a dataclass whose fields are the options of what ``noun`` and ``name`` call."""
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in _fields(cls) if field.init]
    values: dict[str, Any] = {}
    for option, given in options:
        if option not in names:
            known = f" Options: {', '.join(names)}." if names else " It has none."
            raise OptionError(f"{noun} '{name}' has no option '{option}'.{did_you_mean(option, names)}{known}")
        try:
            values[option] = option_value(hints[option], given)
        except ValueError as error:
            raise OptionError(f"{name}:{option}={given} is not allowed: {error}. {remedy}") from None
    missing = [field.name for field in dataclasses.fields(cls) if _is_required(field) and field.name not in values]
    if missing:
        raise OptionError(f"{noun} '{name}' needs {', '.join(missing)}. {remedy}")
    try:
        return cls(**values)
    except ValueError as error:
        raise OptionError(f"{noun} '{name}' refuses its options: {reason(error)}.") from error


def effective_options(built: Any, trained: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return every option of what was built with its value; one that was left out (``None``) has a trained part's."""
    options = {field.name: getattr(built, field.name) for field in _fields(type(built)) if field.init}
    return {name: trained.get(name) if value is None else value for name, value in options.items()}


def option_facts(name: str, registry: Registry[Any] = STRATEGIES) -> list[OptionFacts]:
    """Return the options of a registered strategy, or of a name of another registry that has options."""
    cls = _checked(registry, name)
    hints = get_type_hints(cls, include_extras=True)
    facts = []
    for field in _fields(cls):
        info = FieldInfo.from_annotation(hints[field.name])
        is_choice = get_origin(info.annotation) is Literal
        kind = " | ".join(filter(None, get_args(info.annotation))) if is_choice else ""
        kind = kind or getattr(info.annotation, "__name__", str(info.annotation))
        default = None if field.default is dataclasses.MISSING else field.default
        said = info.description or ""
        facts.append(OptionFacts(field.name, kind, limits(info.metadata), default, said, _is_required(field)))
    return facts


def option_range(name: str, option: str) -> tuple[float, float] | None:
    """Return the least and the greatest value an option allows; ``None`` where there is no such option or no end."""
    hint = get_type_hints(_checked(STRATEGIES, name), include_extras=True).get(option)
    pieces = FieldInfo.from_annotation(hint).metadata if hint is not None else []
    ends = [float(getattr(piece, end)) for end in ("ge", "le") for piece in pieces if hasattr(piece, end)]
    return (ends[0], ends[1]) if len(ends) == 2 else None


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields of a strategy, those that it shares with others (keyword-only ones) last."""
    return sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True)


def _checked(registry: Registry[Any], name: str, cls: Any = None) -> Any:
    """Return the class of a name, or one that stands for it, which keeps the promises of its kind."""
    cls = registry.load(name) if cls is None else cls
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise RegistryError(f"{registry.noun} '{name}' is not a dataclass; its fields would be its options.")
    base, members = _PROMISES[registry.group]
    missing = [member for member in members if not hasattr(cls, member)]
    if missing:
        raise RegistryError(
            f"{registry.noun} '{name}' lacks {', '.join(missing)}: subclass harness.contracts.{base}, which brings "
            f"{'it' if len(missing) == 1 else 'them'}."
        )
    return cls
