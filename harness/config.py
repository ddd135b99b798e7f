"""One run configuration, from flags, a TOML file or Python, and the strategy mini-language.

``NAME[:option=value[,value…]]…``: a comma list of values makes one operating point each; several
options are separated by ``:`` (or by a comma before ``option=``), and several lists make their product.
Nothing here knows which strategies exist; the runner resolves names.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from harness.contracts import KVInput, KVPolicy, WeightsChoice
from harness.errors import ConfigError, did_you_mean

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


class RunConfig(BaseModel):
    """Everything that decides a run. Frozen; saved whole in the manifest.

    Attributes:
        strategies: operating points in the mini-language of this module; full depth is always added, and none
            stands for :func:`demo_strategies`.
        model: catalogue name, hub id or local folder.
        tasks: registered task names.
        protocol: ``green-code`` (the next 15 tokens of a file) or ``codexglue-line`` (to the line's end).
        source: ``embedded``, ``hub``, or a path to a JSONL file or dataset folder.
        limit: samples per task; ``None`` for all.
        max_new_tokens: overrides the protocol's limit.
        kv: what happens to K,V of skipped layers; a comma list compares several policies in one run, the first one's
            full depth being the baseline.
        kv_input: what ``propagate`` fills them from: the exit's ``hidden`` state, or the line from there to what the
            exit's ``shortcut`` makes of it.
        exit_points: ``paper`` (GREEN-CODE's rule), ``all``, or a comma list of layers.
        batch_size: samples decoded together.
        dtype: torch dtype name of weights and activations.
        device: torch device; ``auto`` takes CUDA when there is one.
        threads: CPU threads; ``None`` leaves torch's choice.
        weights: ``pretrained`` (base), ``tuned`` (with the adapter of ``harness train lite``), ``random`` for runs at
            full size without weights, or ``auto``: tuned where there is an adapter.
        exit_head: what reads an exit: ``shared`` (the model's own head), ``shortcut`` (a linear map per exit before
            it), or ``auto``: shortcut where there are maps for the weights.
        artefacts: folder of trained artefacts or name of a shipped set; ``None`` for ``artefacts/MODEL`` and the
            shipped ones.
        energy: which meter, by registered name; ``auto`` takes the best sensor found, else the labelled estimate.
        tdp_w: power the estimate spreads over the logical cores the system shows, watts; ``None`` for its default.
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

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategies: tuple[str, ...] = ()
    model: Annotated[str, Field(min_length=1)] = "smollm2-135m"
    tasks: tuple[str, ...] = ("py150",)
    protocol: Protocol = "green-code"
    source: Annotated[str, Field(min_length=1)] = "embedded"
    limit: Annotated[int, Field(ge=1)] | None = 16
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    kv: KVPolicy | tuple[KVPolicy, ...] = KVPolicy.PROPAGATE
    kv_input: KVInput = "hidden"
    exit_points: str = "paper"
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    weights: WeightsChoice = "auto"
    exit_head: Literal["auto", "shared", "shortcut"] = "auto"
    artefacts: str | None = None
    energy: str = "auto"
    tdp_w: Annotated[float, Field(gt=0, le=10_000)] | None = None
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
        if isinstance(value, list | tuple):
            once = tuple(dict.fromkeys(value))
            if not once:
                raise ValueError("names no policy")
            return once[0] if len(once) == 1 else once
        return value

    @property
    def kv_policies(self) -> tuple[KVPolicy, ...]:
        """The KV policies to compare, at least one."""
        return self.kv if isinstance(self.kv, tuple) else (self.kv,)

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """Validate a mapping and turn pydantic's report into one line.

        Raises:
            ConfigError: unknown name, wrong type or out of range; says which and what is allowed.
        """
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(f"unknown configuration key '{key}'.{did_you_mean(key, cls.model_fields)}")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][:1])
            raise ConfigError(f"{where} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}.") from None

    @classmethod
    def read_toml(cls, path: Path) -> dict[str, Any]:
        """Return the keys of a TOML file, for :meth:`build` after flags were laid over them.

        Raises:
            ConfigError: the file cannot be read or parsed.
        """
        try:
            with path.open("rb") as file:
                return tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"cannot read configuration {path}: {error.strerror}.") from None
        except ValueError as error:  # TOMLDecodeError, or bytes that are not UTF-8
            raise ConfigError(f"configuration {path} is not valid TOML: {error}.") from None

    def specs(self) -> list[StrategySpec]:
        """Return the operating points as written, expanded, each once, in order."""
        return parse_all(self.strategies)
