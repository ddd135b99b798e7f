"""Options of ``harness sweep``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.model import Artefacts, Configuration, Folder, OperatingPoint, Seed, TaskName

__all__ = ["SweepOptions"]


class SweepOptions(Configuration):
    """What ``harness sweep`` can be told."""

    replay: Folder = Field(description="Folder that `harness trace` made.")
    strategies: tuple[OperatingPoint, ...] = Field(
        description="NAME:option=value[,value…], one operating point each; NAME alone is swept over its threshold. "
        "Repeatable."
    )
    points: Annotated[
        int, Field(ge=1, le=1000, description="Thresholds of a swept strategy, at quantiles of the scores observed.")
    ] = 20
    document_split: Annotated[
        Literal["held-out", "all"], Field(description="held-out (documents that heads never learned from) or all.")
    ] = "held-out"
    tasks: Annotated[
        tuple[TaskName, ...], Field(description="Only this task's documents. Repeatable. Default: all.")
    ] = ()
    references: Annotated[bool, Field(description="Add fixed exits and the oracle's bound.")] = True
    model: str | None = Field(default=None, description="Whose trace it is. Default: the model the trace names.")
    artefacts: Artefacts = None
    kv: Annotated[
        Literal["propagate", "recompute", "skip"], Field(description="K,V of skipped layers, for the expected speed-up")
    ] = "recompute"
    keep: Annotated[float, Field(gt=0, le=1, description="Agreement that the first table asks for.")] = 0.98
    live: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="Also decode operating points of the front live on so many samples a task.",
        ),
    ] = 0
    live_points: Annotated[int, Field(ge=1, le=100, description="At most so many of them.")] = 4
    source: Annotated[str, Field(description="Where live samples come from: embedded, hub, or PATH.")] = "embedded"
    max_new_tokens: int | None = Field(default=None, description="Of a live sample. Default: the protocol's limit.")
    seed: Annotated[Seed, Field(description="Decides which documents are held out; the heads' own is 0.")] = 0
    out: Folder | None = Field(default=None, description="Folder for sweep.json, sweep.csv and calibration.json.")
