"""Options that recipes share: which model, where the artefact goes, and the trace it is learned from.

No torch: a recipe's flags are read from its class, and ``harness train NAME --help`` must be instant.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from harness.config.model import DEFAULT_MODEL, Configuration, Folder, ModelName, Seed, TaskName

__all__ = ["ControllerOptions", "ObservationName", "Resume", "TraceOptions", "TrainingOptions"]

Resume = Annotated[bool, Field(description="Go on from the last checkpoint in --out.")]
ObservationName = Annotated[
    Literal["paper", "normal", "rich", "exit"],
    Field(
        description="What it sees: paper (the hidden state), normal (divided by its size), rich (its change too), exit "
        "(as rich, of the state behind the exit's shortcut)."
    ),
]
"""Keys of :data:`harness.models.controllers.OBSERVATIONS`."""


class TrainingOptions(Configuration):
    """Options of every recipe."""

    model: ModelName = DEFAULT_MODEL
    out: Folder | None = Field(default=None, description="Folder for what is made. Default: artefacts/MODEL.")
    seed: Seed = Field(default=0, description="Decides everything random.")

    @property
    def folder(self) -> Path:
        """Where the artefact goes."""
        return self.out or Path("artefacts") / Path(self.model).name


class TraceOptions(TrainingOptions):
    """Options of a recipe that learns from a trace."""

    traces: Folder = Field(description="Folder that `harness trace` made.")
    name: str | None = Field(default=None, description="File name without its ending. Default: the recipe's name.")
    overwrite: bool = Field(
        default=False, description="Replace what is there under that name, whatever it was trained for."
    )
    artefacts: str | None = Field(
        default=None,
        description="Where the model's adapter and shortcuts are: a folder of `harness train`, or a shipped set.",
    )

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise ValueError("input should be a plain file name: letters, digits, and . _ - after the first")
        return name


class ControllerOptions(TraceOptions):
    """Options of a recipe that trains a controller."""

    tasks: tuple[TaskName, ...] = Field(
        default=(), description="Learn from this task's documents only. Repeatable. Default: all."
    )
    keep: float = Field(
        default=0.98, gt=0, le=1, description="Agreement with the last layer that the suggested threshold keeps."
    )
