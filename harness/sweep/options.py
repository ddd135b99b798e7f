"""Options of ``harness sweep``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from harness.config.decode import DRAFT_MAX, parse_decodes
from harness.config.model import Artefacts, Configuration, Folder, KVName, OperatingPoint, Seed, TaskName
from harness.config.stops import NO_STOP, parse_stops


class SweepOptions(Configuration):
    """Options of ``harness sweep``."""

    replay: Folder = Field(description="Folder that `harness trace` made.")
    strategies: tuple[OperatingPoint, ...] = Field(
        description="NAME:option=value[,value…], one operating point each; NAME alone is swept over its threshold. "
        "Repeatable."
    )
    decode: str | tuple[str, ...] = Field(
        default="lossy",
        description="lossy, lossless, or lossless+SOURCE[:option=value]… of `harness list drafts`; a comma list "
        "replays every strategy in each way. Drafts need a trace of --new-tokens.",
    )
    stop: str | tuple[str, ...] = Field(
        default=NO_STOP, description="none alone: a replay has no completions to end (`harness run --stop RULE`)."
    )
    draft_max: int = Field(default=DRAFT_MAX, ge=1, le=1024, description="Tokens of a draft at most, lossless.")
    points: int = Field(
        default=20, ge=1, le=1000, description="Thresholds of a swept strategy, at quantiles of the scores observed."
    )
    document_split: Literal["held-out", "all"] = Field(
        default="held-out", description="held-out (documents that heads never learned from) or all."
    )
    tasks: tuple[TaskName, ...] = Field(default=(), description="Only this task's documents. Repeatable. Default: all.")
    references: bool = Field(default=True, description="Add fixed exits and the oracle's bound.")
    model: str | None = Field(default=None, description="Whose trace it is. Default: the model the trace names.")
    artefacts: Artefacts = None
    kv: KVName = Field(
        default="recompute",
        description="K,V of skipped layers, for the expected speed-up: one of `harness list kv` that keeps a cache.",
    )
    measure_costs: bool = Field(
        default=False, description="Measure what the model's parts take here, for an expected speed-up in time."
    )
    keep: float = Field(default=0.98, gt=0, le=1, description="Agreement that the first table asks for.")
    live: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Also decode operating points of the front live on so many samples a task.",
    )
    live_points: int = Field(default=4, ge=1, le=100, description="At most so many of them.")
    source: str = Field(default="embedded", description="Where live samples come from: embedded, hub, or PATH.")
    max_new_tokens: int | None = Field(default=None, description="Of a live sample. Default: the protocol's limit.")
    seed: Seed = Field(default=0, description="Decides which documents are held out; the heads' own is 0.")
    out: Folder | None = Field(default=None, description="Folder for sweep.json, sweep.csv and calibration.json.")

    @field_validator("decode", mode="before")
    @classmethod
    def _decodes_listed(cls, value: Any) -> Any:
        return parse_decodes(value)

    @field_validator("stop", mode="before")
    @classmethod
    def _nothing_to_end(cls, value: Any) -> Any:
        rules: Any = parse_stops(value)
        if rules != NO_STOP:
            raise ValueError(
                "a replay has no completions to end: exits are judged behind the trace's text, and what a strategy "
                "would have written itself is not there to be read. Run it live: `harness run --stop "
                f"{rules if isinstance(rules, str) else ','.join(rules)} --strategy NAME`"
            )
        return rules

    @property
    def decodes(self) -> tuple[str, ...]:
        """The ways to decode to replay."""
        return self.decode if isinstance(self.decode, tuple) else (self.decode,)
