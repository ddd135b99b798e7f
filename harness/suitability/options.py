"""Options of ``harness suitability``."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from harness.config.model import DocumentChoice, Folder, FormatName, ModelChoice, Seed, Threads
from harness.contracts import Split
from harness.errors import ConfigError
from harness.training.options import TraceRequest


class SuitabilityOptions(ModelChoice, DocumentChoice):
    """Options of ``harness suitability``."""

    documents: int = Field(default=12, ge=4, le=10_000, description="Documents of each task and source.")
    length: int = Field(default=384, ge=32, description="Tokens a document is cut at.")
    split: Split = Field(default="validation", description="Part of each dataset; runs are measured on test")
    keep: float = Field(
        default=0.95, gt=0, le=1, description="Share of full depth's tokens that a lossy setting has to keep."
    )
    weights_format: FormatName = Field(
        default="auto", description="Format whose costs count: auto (what a run would take), or one of `harness list`."
    )
    measure_costs: bool = Field(
        default=True, description="Measure what the model's parts take here; without it only bytes are counted."
    )
    traces: Folder | None = Field(
        default=None,
        description="Folder of `harness trace` to read instead of documents; its model is taken as traced.",
    )
    out: Folder | None = Field(default=None, description="Folder for suitability.json and the trace, which is kept.")
    threads: Threads = None
    seed: Seed = Field(default=0, description="Decides which documents.")

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _a_trace_is_read_as_it_is(self) -> Self:
        decided = {"tasks", "sources", "documents", "length", "split", "exit_points", "weights", "exit_head", "dtype"}
        given = sorted(decided & self.model_fields_set)
        if self.traces is not None and given:
            raise ConfigError(f"--traces {self.traces} decides {', '.join(given)}: omit that, or omit --traces.")
        return self

    @property
    def traced(self) -> TraceRequest:
        """The model, documents and exits to trace."""
        return TraceRequest(documents=self.documents, length=self.length, split=self.split, seed=self.seed)
