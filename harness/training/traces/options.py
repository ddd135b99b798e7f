"""Options of ``harness trace``; :mod:`harness.training.traces.record_trace` does the work."""

from __future__ import annotations

from pydantic import Field, field_validator

from harness.config.device_map import DeviceMap
from harness.config.documents import DocumentChoice
from harness.config.model import Configuration, Folder, ModelChoice, Seed, Threads
from harness.contracts import Split

__all__ = ["TraceCommand", "TraceRequest"]


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
