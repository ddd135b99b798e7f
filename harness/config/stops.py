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
    """A stop rule, built.

    Attributes:
        name: registered name.
        rule: the rule.
        written: as it was written, in canonical form.
    """

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
    """Return a stop rule; ``None`` for ``none``.

    Raises:
        ConfigError: the text does not have that form.
        UnknownNameError: no such rule.
        OptionError: it has no such option, or a value is out of range.
    """
    name, options = parse_named(text, f"stop = '{text}'", "stop rule", FORM)
    if name == NO_STOP and not options:
        return None
    written = ":".join([name, *(f"{option}={value}" for option, value in options.items())])
    return BuiltStop(name, build(STOPS, name, options.items()), written)


def parse_stops(value: object) -> object:
    """Take ``none,statement`` apart: rules in canonical form, each once; what is no such list is left alone.

    Raises:
        HarnessError: as :func:`build_stop`.
        ValueError: there is none.
    """
    return comma_list(value, _canonical)


def _canonical(text: object) -> str:
    built = build_stop(str(text))
    return NO_STOP if built is None else built.written


StopText: TypeAlias = Annotated[str, AfterValidator(_canonical)]
"""One stop rule in a configuration, checked."""
