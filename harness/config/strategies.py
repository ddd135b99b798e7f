"""The strategy mini-language: operating points as written, still text.

``NAME[:option=value[,value…]]…``: a comma list of values makes one operating point each; several
options are separated by ``:`` (or by a comma before ``option=``), and several lists make their product. A value that is
no number may hold colons: ``url=http://localhost:8080``. In a run ``@lossless``, ``@lossless+SOURCE[:option=value]…``
or ``@lossy`` behind it says how these decode.
Nothing here knows which strategies exist; :mod:`harness.config.options` builds them. From Python a strategy may also be
given as an object or a class, of a notebook cell for example.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.config.model import Named
from harness.contracts import Strategy
from harness.errors import ConfigError

_DECODE = re.compile("@los[a-z]*([+].*)?$")
_NUMBER = re.compile(r"[-+.\d]*")

V = TypeVar("V")

BASELINE = "full"  # the operating point every other one is paired with

ADVISED_DECODE = "lossless+suffix"
ADVISED = f"{BASELINE}@{ADVISED_DECODE}"
"""What docs/results advise where nothing may be lost, on both models and every processor measured there: drafts from
the text itself, and no exits. ``harness serve`` starts with it.
"""


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
        "predictor",
        "consistent",
        "sec",
        "hash",
        "oracle",
        f"{BASELINE}@lossless+lookup",
        ADVISED,
        "classifier@lossless",
        "classifier@lossless+suffix",
    )


@dataclass(frozen=True, slots=True)
class StrategySpec(Named):
    """One operating point as written.

    ``built`` is the strategy where it was given as an object, its name then ``module:class``; ``decode`` is what was
    written behind ``@``, ``None`` for the run's own.
    """

    built: Strategy | None = dataclasses.field(default=None, compare=False, repr=False)
    decode: str | None = None

    def at(self, option: str, value: str) -> StrategySpec:
        """Return the same with one more option, decoded as the run does."""
        return StrategySpec(self.name, (*self.options, (option, value)))

    def without(self, option: str) -> StrategySpec:
        """Return the same without an option, decoded as the run does."""
        return StrategySpec(self.name, tuple(each for each in self.options if each[0] != option))


def combinations(grid: Mapping[str, Sequence[V]]) -> Iterator[dict[str, V]]:
    """Yield every combination of the values of some settings, the last setting varying fastest."""
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def parse_strategies(text: str, *, in_run: bool = False) -> list[StrategySpec]:
    """Expand ``NAME[:option=value[,value…]]…`` to one spec per combination of values."""
    written, decode = text.strip(), None
    if (at := _DECODE.search(written)) is not None:
        written, decode = written[: at.start()], written[at.start() + 1 :]
        if not in_run:
            raise ConfigError(
                f"--strategy '{text}': '@{decode}' can be said of a run's strategies only (`harness run`). "
                "Leave it out here."
            )
    name, _, rest = written.partition(":")
    if not name.strip():
        raise ConfigError(f"--strategy '{text}' names no strategy. Write NAME or NAME:option=value.")
    if re.search("[=,;]", name):
        raise ConfigError(
            f"--strategy '{text}' cannot be read at '{name.strip()}'. Write NAME:option=value[,value…], and give each "
            "strategy by itself: --strategy NAME --strategy NAME, in a file a list."
        )
    choices: dict[str, list[str]] = {}
    current: str | None = None
    for group in _groups(rest):
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
    return [StrategySpec(name.strip(), tuple(values.items()), decode=decode) for values in combinations(choices)]


def _groups(rest: str) -> list[str]:
    """Split at the colons that separate options; any other one belongs to the value before it."""
    groups: list[str] = []
    for piece in rest.split(":") if rest else []:
        before = groups[-1].rpartition("=")[2].strip() if groups and "=" in groups[-1] else ""
        if piece.strip() and "=" not in piece.partition(",")[0] and not _NUMBER.fullmatch(before):
            groups[-1] += f":{piece}"
        else:
            groups.append(piece)
    return groups


def parse_all(given: Sequence[str | Strategy], *, in_run: bool = False) -> list[StrategySpec]:
    """Expand several texts and objects, each operating point once, in order; see :func:`parse_strategies`."""
    expanded = [parse_strategies(item, in_run=in_run) if isinstance(item, str) else [spec_of(item)] for item in given]
    return list(dict.fromkeys(itertools.chain.from_iterable(expanded)))


def as_strategy(given: Any) -> Strategy:
    """Return a strategy given as an object, or as a class whose options all have defaults."""
    name = getattr(given if isinstance(given, type) else type(given), "__name__", "")
    frozen = getattr(getattr(given, "__dataclass_params__", None), "frozen", False)
    if not frozen or not hasattr(given, "should_exit"):
        raise ConfigError(
            f"{name} {ascii(given)[:60]} is no strategy: give NAME[:option=value], or a frozen dataclass that "
            "subclasses harness.contracts.Strategy and has should_exit."
        )
    if isinstance(given, type):
        try:
            given = given()
        except TypeError as error:  # an option without a default
            raise ConfigError(f"{error}. Give an object: {name}(…).") from None
    strategy: Strategy = given
    return strategy


def spec_of(strategy: Strategy) -> StrategySpec:
    """Return the operating point of a strategy given as an object, named by its module and class."""
    fields = [field.name for field in dataclasses.fields(strategy) if field.init]  # type: ignore[arg-type]
    options = tuple((name, str(getattr(strategy, name))) for name in fields)
    return StrategySpec(f"{type(strategy).__module__}:{type(strategy).__qualname__}", options, strategy)
