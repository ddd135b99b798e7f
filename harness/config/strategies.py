"""The strategy mini-language: operating points as written, still text.

``NAME[:option=value[,value…]]…``: a comma list of values makes one operating point each; several
options are separated by ``:`` (or by a comma before ``option=``), and several lists make their product.
Nothing here knows which strategies exist; :mod:`harness.config.options` builds them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import ConfigError

__all__ = ["BASELINE", "StrategySpec", "demo_strategies", "parse_all", "parse_strategies"]

BASELINE = "full"  # the operating point every other one is paired with


def demo_strategies(exit_points: Sequence[int]) -> tuple[str, ...]:
    """Return the operating points of a run that names none, for any model.

    Those that run on trained artefacts are left out by the plan where the model has none.
    """
    late = ",".join(str(point) for point in exit_points[-2:])
    return (
        BASELINE,
        *([f"fixed:layer={late}"] if late else []),
        "confidence:threshold=0.9",
        "saturation:threshold=0.95",
        "classifier",
        "rl",
        "oracle",
    )


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """One operating point as written: a strategy name and the options given for it, still text.

    Attributes:
        name: strategy name.
        options: option name → value as text.
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{key}={value}" for key, value in self.options)])


def parse_strategies(text: str) -> list[StrategySpec]:
    """Expand ``NAME[:option=value[,value…]]…`` to one spec per combination of values.

    Raises:
        ConfigError: the text does not have that form.
    """
    name, _, rest = text.strip().partition(":")
    if not name.strip():
        raise ConfigError(f"--strategy '{text}' names no strategy. Write NAME or NAME:option=value.")
    choices: dict[str, list[str]] = {}
    current: str | None = None
    for group in rest.split(":") if rest else []:
        current = None
        for item in group.split(","):
            key, equals, value = item.partition("=")
            if equals:
                current = key.strip()
                if current in choices:
                    raise ConfigError(f"--strategy '{text}' gives option '{current}' twice.")
                choices[current] = []
            else:
                value = item
            if current is None or not current or not value.strip():
                raise ConfigError(f"--strategy '{text}' cannot be read at '{item}'. Write NAME:option=value[,value…].")
            choices[current].append(value.strip())
    combinations = itertools.product(*choices.values())
    return [StrategySpec(name.strip(), tuple(zip(choices, values, strict=True))) for values in combinations]


def parse_all(texts: Sequence[str]) -> list[StrategySpec]:
    """Expand several texts, each operating point once, in order; see :func:`parse_strategies`."""
    return list(dict.fromkeys(spec for text in texts for spec in parse_strategies(text)))
