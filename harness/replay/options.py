"""Options of ``harness sweep``, ``harness suitability`` and ``harness calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from harness.config import RunConfig
from harness.config.decode import DRAFT_MAX, parse_decodes
from harness.config.model import (
    Artefacts,
    Configuration,
    DocumentChoice,
    File,
    Folder,
    FormatName,
    KVName,
    ModelChoice,
    OperatingPoint,
    Placeholder,
    Seed,
    TaskName,
    Threads,
)
from harness.contracts import Split
from harness.errors import ConfigError
from harness.records.guarantee import Method, PValueName, Unit
from harness.training.options import TraceCommand


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

    def traced(self, folder: Path) -> TraceCommand:
        """Return the trace to be made, or gone on with, in a folder."""
        names = TraceCommand.model_fields.keys() & type(self).model_fields.keys()
        own = {name: getattr(self, name) for name in names}
        resume = (folder / "index.json").is_file()
        return TraceCommand.model_construct(**{**own, "out": folder, "resume": resume})


class Certainty(Configuration):
    """How sure a promise is that comes with a probability."""

    confidence: float = Field(
        default=0.95, ge=0.001, le=0.999999, description="Least probability that the promise holds; of learn-then-test."
    )
    p_value: PValueName = Field(
        default="betting",
        description="How a threshold is tested: Waudby-Smith and Ramdas' betting martingale, or Hoeffding-Bentkus",
    )


class CalibrateOptions(Certainty, RunConfig):
    """Options of ``harness calibrate``; a run's lists are one value here."""

    target: Annotated[str, Placeholder("TARGET")] = Field(
        description="Least mean agreement over documents (agreement=0.95; exact_prefix, exact_line, "
        "own_text_agreement), or largest mean loss of a score against full depth's (edit_similarity_loss=0.02)."
    )
    strategies: tuple[Annotated[str, Placeholder("SPEC")], ...] = Field(
        default=(),
        description="NAME[:option=value[,value…]]: the option with a list is calibrated. threshold=q10,q50,q90 are "
        "percentiles of the scores observed; NAME alone tries --points of them. With --resume: which of the run's.",
    )
    method: Method = Field(default="learn-then-test", description="What promises, in a probability or in expectation")
    unit: Unit = Field(default="document", description="Of what the mean is promised, each counted once")
    points: int = Field(default=8, ge=1, le=100, description="Thresholds to try where none is named.")
    observe: int = Field(
        default=8, ge=1, le=1000, description="Further documents, on whose scores percentiles are taken."
    )
    against: tuple[Folder, ...] = Field(
        default=(), description="Run directory of other documents, on which the promise is checked. Repeatable."
    )
    file: File | None = Field(default=None, description="The operating point. Default: operating-point.json in --out.")
    limit: int | None = Field(default=200, ge=0, le=10**9, description="Documents to calibrate on; 0 for all.")

    decode: Literal["lossy"] = "lossy"  # of one value: no flag
    stop: Literal["none"] = "none"
    repeats: Literal[1] = 1
    arrival_rate: Literal[None] = None
    attribute: Literal[False] = False

    @field_validator("strategies", "tasks", "kv", "weights_format", mode="after")
    @classmethod
    def _one(cls, value: Any, field: ValidationInfo) -> Any:
        if not isinstance(value, str) and len(value) > 1:
            raise ValueError("a calibration has one: what is promised of a mixture holds of none of its parts")
        return value

    @model_validator(mode="after")
    def _confidence_is_of_tests(self) -> Self:
        if self.method == "conformal" and self.model_fields_set & Certainty.model_fields.keys():
            raise ConfigError(
                "--method conformal promises an expectation, and --confidence and --p-value belong to learn-then-test. "
                "Omit them."
            )
        return self

    @property
    def delta(self) -> float:
        """δ, the probability that the promise may fail."""
        return round(1 - self.confidence, 12)

    @property
    def run_fields(self) -> frozenset[str]:
        """Names of the options that a run has as well."""
        return frozenset(RunConfig.model_fields)

    def as_run(self, strategies: tuple[str, ...]) -> RunConfig:
        """Return the configuration of the run that decodes the documents."""
        given = {name: getattr(self, name) for name in self.model_fields_set & self.run_fields}
        return RunConfig.build({**given, "limit": self.limit or 0, "strategies": strategies})

    def written_to(self, directory: Path) -> Path:
        """Return where the operating point goes."""
        return self.file or directory / "operating-point.json"
