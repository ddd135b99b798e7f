"""Options of ``harness verify``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from harness.config import RunConfig
from harness.config.decode import DRAFT_MAX, DraftHead, DraftMax
from harness.config.model import (
    DEFAULT_MODEL,
    Artefacts,
    Configuration,
    ModelName,
    Placeholder,
    Seed,
    TaskName,
    Threads,
    registered,
)
from harness.config.rules import NONE
from harness.contracts import ExitHead, WeightsChoice
from harness.registry import WEIGHTS_FORMATS

LARGEST_BATCH = 64


class VerifyOptions(Configuration):
    """Options of ``harness verify``."""

    model: ModelName = DEFAULT_MODEL
    strategies: tuple[Annotated[str, Placeholder("SPEC")], ...] = Field(
        default=(),
        description="What drafts, as of `harness run`, decoded losslessly: held against full depth. Repeatable. "
        "Default: what `harness run` decodes losslessly when it names none; full leaves this out.",
    )
    draft_max: DraftMax = Field(default=DRAFT_MAX, description="Tokens of a draft at most.")
    draft_head: DraftHead = "auto"
    prompt_exit: str = Field(
        default=NONE,
        description="Read prompts with these exits, deepen them, and hold what is decoded behind them against full "
        "depth; as of `harness run`. Default: none.",
    )
    weights_format: str | tuple[str, ...] = Field(
        default=(),
        description="Formats to hold against float32, a comma list of those in `harness list`. Default: float32 and "
        "every near-exact one that this machine runs.",
    )
    batch_size: str | tuple[int, ...] = Field(
        default=(1, 3),
        description="Rows to decode together, a comma list; each above 1 is held against rows alone. No more "
        "than there are prompts.",
    )
    prompts: int = Field(default=50, ge=1, le=10**6, description="Prompts of each task.")
    max_new_tokens: int = Field(default=30, ge=1, le=4096, description="New tokens per prompt.")
    tasks: tuple[TaskName, ...] = Field(
        default=RunConfig.model_fields["tasks"].default, description="Task, see `harness list tasks`. Repeatable."
    )
    protocol: str | None = Field(default=None, description="A name of `harness list protocols`. Default: the task's.")
    source: str = Field(
        default="embedded", min_length=1, description="embedded, hub, or PATH of a JSONL file or dataset folder."
    )
    weights: WeightsChoice = Field(default="auto", description="As of `harness run`")
    exit_points: Annotated[str, Placeholder("LAYERS")] = Field(default="paper", description="As of `harness run`")
    exit_head: ExitHead = Field(default="auto", description="As of `harness run`")
    artefacts: Artefacts = None
    device: str = Field(default="auto", description="auto (CUDA where there is one), cpu, cuda or cuda:N.")
    threads: Threads = None
    seed: Seed = Field(
        default=0, description="Decides the prompts, random weights, and the noise that bounds rounding."
    )

    @property
    def weights_formats(self) -> tuple[str, ...]:
        """The formats that were named; none for the default."""
        return self.weights_format if isinstance(self.weights_format, tuple) else (self.weights_format,)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows of a batch, each once."""
        assert isinstance(self.batch_size, tuple)
        return self.batch_size

    @field_validator("weights_format", "batch_size", mode="before")
    @classmethod
    def _comma_list(cls, value: Any, field: ValidationInfo) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        if field.field_name == "weights_format":
            return tuple(dict.fromkeys(registered(WEIGHTS_FORMATS, str(part).strip()) for part in parts))
        return tuple(dict.fromkeys(_size(part) for part in parts))


def _size(part: Any) -> int:
    try:
        size = int(part)
    except (TypeError, ValueError):
        size = 0
    if not 1 <= size <= LARGEST_BATCH:
        raise ValueError(f"{part!r} is no number of rows from 1 to {LARGEST_BATCH}")
    return size
