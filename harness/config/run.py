"""One run configuration, from flags, a TOML file or Python."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from harness.config.model import Folder, ModelConfiguration, OperatingPoint, Seed, TaskName
from harness.config.strategies import StrategySpec, parse_all
from harness.contracts import KVPolicy

__all__ = ["RunConfig"]

Protocol = Literal["green-code", "codexglue-line"]


class RunConfig(ModelConfiguration):
    """Everything that decides a run, beside the model's configuration; saved whole in the manifest."""

    strategies: Annotated[
        tuple[OperatingPoint, ...],
        Field(
            description="NAME[:option=value[,value…]]; a comma list makes one operating point each. Repeatable. "
            "Full depth is always added as the baseline."
        ),
    ] = ()
    tasks: Annotated[tuple[TaskName, ...], Field(description="Task, see `harness list tasks`. Repeatable.")] = (
        "py150",
    )
    protocol: Annotated[
        Protocol,
        Field(description="green-code (the next 15 tokens of a file) or codexglue-line (to the end of the line)."),
    ] = "green-code"
    source: Annotated[
        str, Field(min_length=1, description="embedded, hub, or PATH of a JSONL file or dataset folder.")
    ] = "embedded"
    limit: Annotated[int, Field(ge=0)] | None = Field(default=16, description="Samples per task; 0 for all.")
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="New tokens per sample. Default: the protocol's limit."
    )
    kv: Annotated[
        Literal["auto"] | KVPolicy | tuple[KVPolicy, ...],
        Field(
            description="K,V of skipped layers: auto (recompute; propagate for fixed exits), recompute, propagate, "
            "none, skip; a comma list compares, the first one's full depth being the baseline."
        ),
    ] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024, description="Samples decoded together.")] = 1
    repeats: Annotated[int, Field(ge=1, le=1000, description="Repetitions of each block, each in a fresh process.")] = 1
    arrival_rate: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        default=None,
        description="Requests per second, a Poisson process with a queue. Default: each one when the last is done.",
    )
    block_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Samples per interleaved block. Default: from the meter's sensor period."
    )
    attribute: Annotated[
        bool,
        Field(description="Measure where the time goes: adds a probe per strategy, which is asked and never exits."),
    ] = False
    strict: Annotated[bool, Field(description="Measure windows that other work contaminated again, up to 3 times.")] = (
        False
    )
    idle_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Seconds of idle power before and after the work; 0 for none. Default: from the sensor.",
    )
    seed: Annotated[Seed, Field(description="Decides sampling, order and random strategies.")] = 0
    out: Folder | None = Field(default=None, description="Run directory. Default: runs/TIME-MODEL-TASK.")

    @field_validator("strategies", "tasks", mode="after")
    @classmethod
    def _each_once(cls, value: tuple[str, ...], field: ValidationInfo) -> tuple[str, ...]:
        if not value and field.field_name == "tasks":
            raise ValueError("names nothing")
        return tuple(dict.fromkeys(value))

    @field_validator("limit", mode="after")
    @classmethod
    def _all(cls, value: int | None) -> int | None:
        return value or None

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
