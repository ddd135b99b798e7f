"""Stop rules as written: ``none``, or ``NAME[:option=value]…`` of ``harness list stops``; a comma list compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from harness.config.model import comma_list, parse_named
from harness.config.options import build
from harness.contracts import Cursor, ModelInfo, NamedStop, Stop
from harness.registry import STOPS

FORM = "Write none or NAME[:option=value]… (harness list stops)."

NO_STOP = "none"
"""The word for no rule."""


@dataclass(frozen=True, slots=True)
class BuiltStop:
    """A stop rule, built, and as it was written in canonical form."""

    name: str
    rule: Stop
    written: str

    def check(self, model: ModelInfo, language: str) -> None:
        """Refuse what cannot be decided here; see :meth:`harness.contracts.Stop.check`."""
        self.rule.check(model, language)

    def start(self, cursor: Cursor) -> NamedStop:
        """Return the rule of one completion."""
        return NamedStop(self.name, self.rule.start(cursor))


def build_stop(text: str) -> BuiltStop | None:
    """Return a stop rule; ``None`` for ``none``."""
    named = parse_named(text, f"stop = '{text}'", "stop rule", FORM)
    if str(named) == NO_STOP:
        return None
    return BuiltStop(named.name, build(STOPS, named.name, named.options), str(named))


def parse_stops(value: object) -> object:
    """Take ``none,statement`` apart: rules in canonical form, each once; what is no such list is left alone."""
    return comma_list(value, _canonical)


def _canonical(text: object) -> str:
    built = build_stop(str(text))
    return NO_STOP if built is None else built.written


StopText: TypeAlias = Annotated[str, AfterValidator(_canonical)]
"""One stop rule in a configuration, checked."""
