"""One run configuration, from flags, a TOML file or Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

from pydantic import Field, PlainSerializer, PlainValidator, ValidationInfo, field_validator, model_validator

from harness.config.kv import registered
from harness.config.model import ModelConfiguration
from harness.config.strategies import StrategySpec, as_strategy, parse_all, spec_of
from harness.contracts import Strategy
from harness.errors import ConfigError

__all__ = ["RunConfig"]


def _read_strategy(value: Any) -> Any:
    """Take a strategy as text, object or class; a record of an object is not the object."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and "object" in value:
        raise ConfigError(
            f"the strategy {value['object']} was given as an object and exists only in the program that defines it: "
            "continue there, with harness.run(config, resume=…), or register it as an entry point."
        )
    return as_strategy(value)


def _record_strategy(value: str | Strategy) -> str | dict[str, Any]:
    """Return what the manifest says of a strategy."""
    if isinstance(value, str):
        return value
    spec = spec_of(value)
    return {"object": spec.name, "options": dict(spec.options)}


GivenStrategy: TypeAlias = Annotated[str | Strategy, PlainValidator(_read_strategy), PlainSerializer(_record_strategy)]
"""An operating point as text, or a strategy object (from Python only)."""


class RunConfig(ModelConfiguration):
    """Everything that decides a run, beside the model's configuration; saved whole in the manifest.

    Attributes:
        strategies: operating points in the mini-language of :mod:`harness.config.strategies`, or strategies as objects;
            full depth is always added, and none stands for :func:`harness.config.demo_strategies`.
        tasks: registered task names.
        protocol: registered name, for example ``codexglue-line`` (to the line's end).
        source: ``embedded``, ``hub``, or a path to a JSONL file or dataset folder.
        limit: samples per task; ``None`` for all.
        max_new_tokens: overrides the protocol's limit.
        kv: KV policy, what happens to K,V of skipped layers; ``auto`` is each strategy's own default (``recompute`` for
            everything adaptive, ``propagate`` for ``fixed``); a comma list compares several policies in one run, the
            first one's full depth being the baseline.
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

    strategies: tuple[GivenStrategy, ...] = ()
    tasks: tuple[str, ...] = ("py150",)
    protocol: str = "green-code"
    source: Annotated[str, Field(min_length=1)] = "embedded"
    limit: Annotated[int, Field(ge=1)] | None = 16
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    kv: str | tuple[str, ...] = "auto"
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
        if not isinstance(value, list | tuple):
            return value
        once = tuple(dict.fromkeys(value))
        if not once:
            raise ValueError("names no policy")
        return once[0] if len(once) == 1 and once != ("auto",) else once

    @field_validator("kv", mode="after")
    @classmethod
    def _known(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if value != "auto":
            for name in [value] if isinstance(value, str) else value:
                registered(name)
        return value

    @model_validator(mode="after")
    def _objects_stay_here(self) -> Self:
        if self.repeats > 1 and not all(isinstance(item, str) for item in self.strategies):
            raise ConfigError(
                f"repeats = {self.repeats} needs fresh processes, and a strategy given as an object exists only in "
                "this one. Register it as an entry point, or use repeats = 1."
            )
        return self

    @property
    def kv_policies(self) -> tuple[str, ...]:
        """The KV policies to compare; none where each strategy runs under its own."""
        if self.kv == "auto":
            return ()
        return self.kv if isinstance(self.kv, tuple) else (self.kv,)

    def specs(self) -> list[StrategySpec]:
        """Return the operating points as written, expanded, each once, in order."""
        return parse_all(self.strategies)
