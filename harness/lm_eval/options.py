"""Options of ``harness lm-eval``."""

from __future__ import annotations

from pydantic import Field

from harness.config.decode import DRAFT_MAX, DraftHead, DraftMax
from harness.config.model import DEFAULT_MODEL, Folder, FormatName, ModelConfiguration, ModelName, OperatingPoint, Seed
from harness.config.rules import NONE


class LmEvalOptions(ModelConfiguration):
    """Options of ``harness lm-eval``."""

    tasks: str = Field(
        description="Tasks, groups or tags of lm-eval (`lm_eval ls tasks`), or YAML files, as a comma list."
    )
    model: ModelName = DEFAULT_MODEL
    strategies: tuple[OperatingPoint, ...] = Field(
        default=(),
        description="NAME[:option=value[,value…]] for tasks that generate; as of `harness run`. Repeatable. Full depth "
        "is always added.",
    )
    include_path: Folder | None = Field(default=None, description="Folder with YAML files of further tasks.")
    limit: int | None = Field(default=None, ge=1, description="Documents per task. Default: all.")
    num_fewshot: int | None = Field(default=None, ge=0, description="Examples before each. Default: the task's.")
    max_gen_toks: int = Field(default=256, ge=1, description="New tokens where a task names no limit.")
    apply_chat_template: bool = Field(default=False, description="Write prompts as the model's chat template does.")
    loglikelihood_exit: int | None = Field(
        default=None, ge=1, description="Score given texts at this exit point. Default: full depth."
    )
    batch_size: int = Field(default=1, ge=1, le=1024, description="Requests decoded, or read, together.")
    kv: str = Field(default="auto", description="K,V of skipped layers, as of `harness run`.")
    decode: str = Field(default="lossy", description="lossy or lossless[+SOURCE…], as of `harness run`.")
    draft_head: DraftHead = "auto"
    draft_max: DraftMax = Field(default=DRAFT_MAX, description="Tokens of a draft at most, lossless.")
    prompt_exit: str = Field(default=NONE, description="How deep prompts are read, as of `harness run`.")
    weights_format: FormatName | None = Field(  # type: ignore[assignment]  # nothing named is the dtype's own
        default=None,
        description="How matrices are stored and multiplied: auto, or a format of `harness list`. Default: the dtype's "
        "own, in which full depth is lm-eval's hf model.",
    )
    strict: bool = Field(default=False, description="Measure windows that other work contaminated again.")
    seed: Seed = Field(default=0, description="Decides the order of windows and random strategies.")
    out: Folder | None = Field(default=None, description="Run directory. Default: runs/TIME-MODEL-lm-eval.")

    @property
    def names(self) -> list[str]:
        """The tasks that are named, each once."""
        return list(dict.fromkeys(name for part in self.tasks.split(",") if (name := part.strip())))
