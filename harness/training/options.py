"""Options of ``harness trace``, and those that recipes share; no torch, so that ``--help`` is instant."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from harness.config.model import (
    DEFAULT_MODEL,
    Configuration,
    DeviceMap,
    DocumentChoice,
    Folder,
    ModelChoice,
    ModelName,
    Seed,
    TaskName,
    Threads,
)
from harness.contracts import ModelRequest, Split
from harness.models.exit_modules import ExitModuleName

Resume = Annotated[bool, Field(description="Go on from the last checkpoint in --out.")]
LearnedTasks = Annotated[
    tuple[TaskName, ...], Field(description="Learn from this task's documents only. Repeatable. Default: all.")
]
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


class TraceChoice(TrainingOptions):
    """Options of a recipe that reads a trace."""

    traces: Folder = Field(description="Folder that `harness trace` made.")
    artefacts: str | None = Field(
        default=None,
        description="Where the model's adapter and shortcuts are: a folder of `harness train`, or a shipped set.",
    )


class TraceOptions(TraceChoice):
    """Options of a recipe that learns from a trace."""

    name: str | None = Field(default=None, description="File name without its ending. Default: the recipe's name.")
    overwrite: bool = Field(
        default=False, description="Replace what is there under that name, whatever it was trained for."
    )

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise ValueError("input should be a plain file name: letters, digits, and . _ - after the first")
        return name


class ControllerOptions(TraceOptions):
    """Options of a recipe that trains a controller."""

    tasks: LearnedTasks = ()
    keep: float = Field(
        default=0.98, gt=0, le=1, description="Agreement with the last layer that the suggested threshold keeps."
    )


class TraceRequest(Configuration):
    """The model, documents and exits to trace."""

    documents: int | None = Field(default=100, ge=0, description="Documents of each task and source; 0 for all.")
    length: int = Field(default=640, ge=16, description="Tokens a document is cut at.")
    new_tokens: int = Field(
        default=0,
        ge=0,
        description="Trace so many tokens that the model generates after a context of 20–60 % of each document; 0 "
        "for the document's own tokens from its eighth on (teacher-forced), which costs a fiftieth.",
    )
    split: Split = Field(default="train", description="Part of each dataset")
    seed: Seed = Field(default=0, description="Decides which documents, and the contexts.")

    @field_validator("documents")
    @classmethod
    def _all(cls, value: int | None) -> int | None:
        return value or None


class TraceCommand(ModelChoice, DocumentChoice, TraceRequest):
    """Options of ``harness trace``."""

    threads: Threads = None
    device_map: DeviceMap = None
    out: Folder | None = Field(default=None, description="Folder of the trace. Default: traces/MODEL.")
    resume: bool = Field(default=False, description="Go on with the trace in --out.")

    @property
    def folder(self) -> Path:
        """Where the trace goes."""
        return self.out or Path("traces") / Path(self.model).name

    def request(self, seed: int = 0) -> ModelRequest:
        """Return which model is asked for."""
        return replace(super().request(self.seed), device_map=self.device_map)


class PrepareOptions(DocumentChoice):
    """Options of ``harness prepare``."""

    model: ModelName = DEFAULT_MODEL
    documents: int = Field(default=100, ge=4, description="Documents of each task and source that exits learn from.")
    length: int = Field(default=640, ge=32, description="Tokens a document is cut at.")
    exit_module: ExitModuleName | None = Field(
        default=None,
        description="What reads an exit before the model's own head. Default: mlp/512, or of a narrower model mlp/ and "
        "its width.",
    )
    steps: int = Field(default=1500, ge=0, description="Steps of AdamW that exit modules learn for.")
    agent: bool = Field(
        default=False,
        description="Train an agent, too, on 8 decisions for each token of --documents and --length, 2,000,000 at "
        "most; wants the extra `train`.",
    )
    threads: Threads = None
    traces: Folder | None = Field(default=None, description="Folder of the traces. Default: traces/MODEL.")
    out: Folder | None = Field(default=None, description="Folder for what is made. Default: artefacts/MODEL.")
