"""One run configuration, from flags, a TOML file or Python, and the strategy mini-language.

``NAME[:option=value[,value…]]…``: a comma list of values makes one operating point each; several
options are separated by ``:`` (or by a comma before ``option=``), and several lists make their product.
Nothing here knows which strategies exist; the runner resolves names.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from harness.configuration import ModelConfiguration
from harness.contracts import KVPolicy
from harness.errors import ConfigError

__all__ = ["BASELINE", "RunConfig", "StrategySpec", "demo_strategies", "parse_all", "parse_strategies"]

Protocol = Literal["green-code", "codexglue-line"]

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


class RunConfig(ModelConfiguration):
    """Everything that decides a run, beside the model's configuration; saved whole in the manifest.

    Attributes:
        strategies: operating points in the mini-language of this module; full depth is always added, and none
            stands for :func:`demo_strategies`.
        tasks: registered task names.
        protocol: ``green-code`` (the next 15 tokens of a file) or ``codexglue-line`` (to the line's end).
        source: ``embedded``, ``hub``, or a path to a JSONL file or dataset folder.
        limit: samples per task; ``None`` for all.
        max_new_tokens: overrides the protocol's limit.
        kv: what happens to K,V of skipped layers; ``auto`` is each strategy's own default (``recompute`` for everything
            adaptive, ``propagate`` for ``fixed``); a comma list compares several policies in one run, the first one's
            full depth being the baseline.
        batch_size: samples decoded together.
        repeats: how often each block is repeated, each time in a fresh process.
        arrival_rate: requests per second, in a Poisson process, which wait in a queue when they must; ``None`` sends
            the next when one is done.
        block_size: samples per interleaved block; ``None`` lets the meter's sensor period decide.
        attribute: add a probe per strategy, which asks it and never exits, so that costs can be attributed.
        strict: a window that something else on the machine contaminated is measured again, up to three times.
        idle_s: seconds of waiting, with the model loaded, measured before and after the work; 0 for none, ``None`` for
            as long as the sensor needs, which is 0 without one.
        seed: decides sampling, order and random strategies.
        out: run directory; ``None`` makes a new one under ``runs/``.
    """

    strategies: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("py150",)
    protocol: Protocol = "green-code"
    source: Annotated[str, Field(min_length=1)] = "embedded"
    limit: Annotated[int, Field(ge=1)] | None = 16
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    kv: Literal["auto"] | KVPolicy | tuple[KVPolicy, ...] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    arrival_rate: Annotated[float, Field(gt=0, le=10_000)] | None = None
    block_size: Annotated[int, Field(ge=1)] | None = None
    attribute: bool = False
    strict: bool = False
    idle_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    out: Path | None = None

    @field_validator("strategies", "tasks", mode="after")
    @classmethod
    def _each_once(cls, value: tuple[str, ...], field: ValidationInfo) -> tuple[str, ...]:
        if not value and field.field_name == "tasks":
            raise ValueError("names nothing")
        return tuple(dict.fromkeys(value))

    @field_validator("kv", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Take ``none,propagate`` apart; a list of one is that one."""
        if isinstance(value, str) and "," in value:
            value = [part.strip() for part in value.split(",")]
        known = [policy.value for policy in KVPolicy]
        for name in value if isinstance(value, list | tuple) else [value]:
            if name not in ("auto", *known) or (name == "auto" and value != "auto"):
                raise ValueError(f"input should be 'auto', or some of {', '.join(map(repr, known))}")
        if isinstance(value, list | tuple):
            once = tuple(dict.fromkeys(value))
            if not once:
                raise ValueError("names no policy")
            return once[0] if len(once) == 1 else once
        return value

    @property
    def kv_policies(self) -> tuple[KVPolicy, ...]:
        """The KV policies to compare; none where each strategy runs under its own."""
        if self.kv == "auto":
            return ()
        return self.kv if isinstance(self.kv, tuple) else (self.kv,)

    def specs(self) -> list[StrategySpec]:
        """Return the operating points as written, expanded, each once, in order."""
        return parse_all(self.strategies)
