"""Options of ``harness trace``; :mod:`harness.training.traces.record_trace` does the work."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from harness.config.model import DOCUMENT_TASKS, Configuration, Folder, ModelChoice, Seed, Source, TaskName
from harness.contracts import Split

__all__ = ["TraceCommand", "TraceRequest"]


class TraceRequest(Configuration):
    """What to trace."""

    documents: Annotated[int, Field(ge=0)] | None = Field(
        default=100, description="Documents of each task and source; 0 for all."
    )
    length: Annotated[int, Field(ge=16, description="Tokens a document is cut at.")] = 640
    new_tokens: Annotated[
        int,
        Field(
            ge=0,
            description="Trace so many tokens that the model generates after a context of 20–60 % of each document; 0 "
            "for the document's own tokens from its eighth on (teacher-forced), which costs a fiftieth.",
        ),
    ] = 0
    split: Annotated[Split, Field(description="Part of each dataset")] = "train"
    seed: Annotated[Seed, Field(description="Decides which documents, and the contexts.")] = 0

    @field_validator("documents")
    @classmethod
    def _all(cls, value: int | None) -> int | None:
        return value or None


class TraceCommand(ModelChoice, TraceRequest):
    """What ``harness trace`` can be told."""

    tasks: Annotated[tuple[TaskName, ...], Field(description="Task whose documents are traced. Repeatable.")] = (
        DOCUMENT_TASKS
    )
    sources: Annotated[
        tuple[Source, ...], Field(description="embedded, hub, or PATH. Repeatable; each in equal shares.")
    ] = ("embedded",)
    out: Folder | None = Field(default=None, description="Folder of the trace. Default: traces/MODEL.")
    resume: Annotated[bool, Field(description="Go on with the trace in --out.")] = False
