"""Options of ``harness calibrate``: those of the run that decodes the documents, and what is asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from harness.config import RunConfig
from harness.config.model import Configuration, File, Folder, Placeholder
from harness.errors import ConfigError
from harness.records.guarantee import Method, PValueName, Unit


class Certainty(Configuration):
    """How sure a promise is that comes with a probability."""

    confidence: float = Field(
        default=0.95, ge=0.001, le=0.999999, description="Least probability that the promise holds; of learn-then-test."
    )
    p_value: PValueName = Field(default="empirical-bernstein", description="How a threshold is tested")

    @property
    def delta(self) -> float:
        """δ, the probability that the promise may fail."""
        return round(1 - self.confidence, 12)


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
