"""Stop rules and prompt rules as written: ``none``, or ``NAME[:option=value]…``; a comma list compares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

from pydantic import AfterValidator

from harness.config.model import comma_list, parse_named
from harness.config.options import build
from harness.contracts import Cursor, NamedStop, PromptRule, Stop
from harness.registry import PROMPT_RULES, STOPS, Registry

NONE = "none"
"""The word for no rule."""

Rule = TypeVar("Rule")


@dataclass(frozen=True, slots=True)
class BuiltRule(Generic[Rule]):
    """A rule, built, its name, and as it was written in canonical form."""

    name: str
    rule: Rule
    written: str


BuiltStop: TypeAlias = BuiltRule[Stop]


def build_stop(text: str) -> BuiltStop | None:
    """Return a stop rule; ``None`` for ``none``."""
    return _build(STOPS, f"stop = '{text}'", text, "Write none or NAME[:option=value]… (harness list stops).")


def start_stop(stop: BuiltStop | None, cursor: Cursor) -> NamedStop | None:
    """Return the rule of one completion; ``None`` where there is none."""
    return None if stop is None else NamedStop(stop.name, stop.rule.start(cursor))


def build_prompt_rule(text: str) -> BuiltRule[PromptRule] | None:
    """Return a prompt rule, ``tail`` where options stand alone, ``layer=18:tail=64``; ``None`` for ``none``."""
    named = f"tail:{text}" if "=" in text.partition(":")[0] else text
    form = "Write none, layer=18:tail=64 or NAME[:option=value]… (harness list prompts)."
    return _build(PROMPT_RULES, f"prompt_exit = '{text}'", named, form)


def _build(registry: Registry[Any], given: str, text: str, form: str) -> BuiltRule[Any] | None:
    named = parse_named(text, given, registry.noun, form)
    if str(named) == NONE:
        return None
    return BuiltRule(named.name, build(registry, named.name, named.options), str(named))


def _canonical(build_rule: Callable[[str], BuiltRule[Any] | None], text: object) -> str:
    built = build_rule(str(text))
    return NONE if built is None else built.written


StopText: TypeAlias = Annotated[str, AfterValidator(partial(_canonical, build_stop))]
"""One stop rule in a configuration, checked."""
PromptExitText: TypeAlias = Annotated[str, AfterValidator(partial(_canonical, build_prompt_rule))]
"""One exit for the prompt in a configuration, checked."""


def parse_stops(value: object) -> object:
    """Take ``none,statement`` apart: rules in canonical form, each once; what is no such list is left alone."""
    return comma_list(value, partial(_canonical, build_stop))


def parse_prompt_exits(value: object) -> object:
    """Take ``none,layer=18`` apart as :func:`parse_stops` does."""
    return comma_list(value, partial(_canonical, build_prompt_rule))


def idle_prefetches(prefetches: Collection[str], *, shallow: bool, recalling: bool) -> Iterator[str]:
    """Yield why a prefetch has nothing to do: whether some prompts have exits, and some requests a draft source that
    recalls what was decoded before.
    """
    if "deepen" in prefetches and not shallow:
        yield "--prefetch deepen makes exact what prompt exits left. Add --prompt-exit."
    if "draft" in prefetches and not recalling:
        yield "--prefetch draft is for a draft source that recalls it. Add --decode lossless+suffix."
    if "all" in prefetches and not (shallow or recalling):
        yield "--prefetch all has nothing to do. Add --prompt-exit or --decode lossless+suffix."
