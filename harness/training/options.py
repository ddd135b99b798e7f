"""Options that recipes share: which model, where the artefact goes, and the trace it is learned from.

No torch: a recipe's flags are read from its class, and ``harness train NAME --help`` must be instant.

Options of ``harness train predictor``.

Options of ``harness train shortlist`` and ``harness train lowrank``.

Options of the recipes that train heads on a trace.

Options of ``harness train shortcut``.

Options of ``harness trace``; :mod:`harness.training.traces.record_trace` does the work.

Options of ``harness train lite``.

Options of ``harness train rl``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.config.model import (
    DEFAULT_MODEL,
    Configuration,
    DeviceMap,
    DocumentChoice,
    Folder,
    ModelChoice,
    ModelName,
    Seed,
    Source,
    TaskName,
    Threads,
    WithPresets,
)
from harness.contracts import Split
from harness.contracts.recipes import WeightsRule

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


class PredictorOptions(ControllerOptions):
    """Options of the recipe of SpecEE's predictors."""

    head: str = Field(
        default="shortlist", description="What proposes candidates at the first exit point: full, or a cheap head."
    )
    candidates: int = Field(default=8, ge=2, le=256, description="Tokens that are looked at.")
    hidden: int = Field(default=32, ge=1, description="Width of the hidden layer.")
    epochs: int = Field(default=20, ge=1, description="Passes over the trace.")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="Peak of a one-cycle schedule, AdamW.")


ARTEFACTS = "Where the model's adapter and shortcuts are: a folder of `harness train`, or a shipped set."


class ShortlistOptions(DocumentChoice, TrainingOptions):
    """Options of ``harness train shortlist``."""

    documents: int | None = Field(default=None, ge=2, description="Documents of each source at most. Default: all.")
    size: int = Field(default=16384, ge=2, description="Tokens that are ranked: the largest shortlist there can be.")


class LowRankOptions(TrainingOptions):
    """Options of ``harness train lowrank``."""

    traces: Folder = Field(description="Folder that `harness trace` made.")
    artefacts: str | None = Field(default=None, description=ARTEFACTS)


class HeadRecipe(Configuration):
    """How to train heads; saved in the artefact."""

    objective: Literal["likelihood", "certainty", "return", "actions"] = Field(
        default="likelihood",
        description="likelihood (cross-entropy with the label), certainty (mean squared error, BERxiT), return (of a "
        "policy whose reward is that of ConsistentEE) or actions (cross-entropy with exit, stop or continue).",
    )
    shared: bool = Field(default=False, description="One network for all exit points instead of one each.")
    hidden: int = Field(default=128, ge=0, description="Width of the hidden layer; 0: linear, as in the paper.")
    epochs: int = Field(default=20, ge=1, description="Passes over the trace.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak of a one-cycle schedule, AdamW.")
    weight_decay: float = Field(default=1e-2, ge=0, allow_inf_nan=False, description="Of AdamW.")
    auxiliary: float = Field(
        default=0.3,
        ge=0,
        allow_inf_nan=False,
        description="Weight of two further targets, confidence and entropy; 0: none.",
    )
    batch: int = Field(default=512, ge=1, description="Tokens a step, each at every exit point.")


class ReturnRecipe(HeadRecipe):
    """How to train policies of ConsistentEE; saved in the artefact."""

    objective: Literal["return"] = "return"
    shared: Literal[False] = False
    saving: float = Field(
        default=0.2, ge=0, allow_inf_nan=False, description="α: what all layers cost an easy token, in right tokens."
    )


class HeadOptions(HeadRecipe, ControllerOptions):
    """Options of a recipe that trains heads."""

    observation: ObservationName = "rich"
    resume: Resume = False


class ReturnOptions(ReturnRecipe, HeadOptions):
    """Options of the recipe of ConsistentEE's policies."""


class ActionOptions(ControllerOptions):
    """Options of the recipe of SEC's heads."""

    observation: ObservationName = "rich"
    hidden: int = Field(default=16, ge=0, description="Width of the hidden layer; 0: linear.")
    epochs: int = Field(default=20, ge=1, description="Passes over the trace.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak of a one-cycle schedule, AdamW.")
    precision: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Share of stopped tokens that no layer gets right, which --keep is to exits.",
    )


class ExcessOptions(TraceOptions):
    """Options of the recipe of CodeFast's heads."""

    tasks: tuple[TaskName, ...] = Field(
        default=(), description="Learn from this task's documents only. Repeatable. Default: all."
    )
    precision: float = Field(
        default=0.9, gt=0, le=1, description="Share of held-out stops that must be ends of functions."
    )
    l2: float = Field(default=1e-4, ge=0, le=1, description="Weight of the squared weights beside the cross-entropy.")


class ShortcutOptions(TraceOptions):
    """Options of ``harness train shortcut``."""

    ridge: float = Field(default=1e-4, ge=0, allow_inf_nan=False, description="Damping, relative to the mean variance.")

    @field_validator("name")
    @classmethod
    def _found(cls, name: str | None) -> str | None:
        if name is not None and not name.startswith("shortcut"):
            raise ValueError("input should begin with shortcut, since shortcuts are looked for as shortcut*.json")
        return name


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


class LiteRecipe(Configuration):
    """How to tune; saved in the artefacts. The defaults are what two cores can do in an hour."""

    method: Literal["lora", "full"] = Field(
        default="lora", description="lora (Hu 2021, arXiv 2106.09685, on every linear map of every layer) or full."
    )
    exit_head: Literal["shared", "shortcut"] = Field(
        default="shortcut",
        description="shared (the model's own) or shortcut (a linear map per exit before it, trained along).",
    )
    weights_rule: WeightsRule = Field(default="uniform", description="Loss weights of the exits")
    learning_rate: float = Field(
        default=3e-4, gt=0, allow_inf_nan=False, description="Of the weights, or of LoRA's factors."
    )
    shortcut_learning_rate: float = Field(default=5e-4, gt=0, allow_inf_nan=False, description="Of the shortcuts.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Learning rate after a warm-up of 3 % of the steps"
    )
    steps: int = Field(default=1000, ge=1, description="Optimiser steps.")
    length: int = Field(default=256, ge=2, description="Tokens of a packed sequence.")
    batch: int = Field(default=8, ge=1, description="Sequences a device takes at once.")
    accumulate: int = Field(default=1, ge=1, description="Gradient accumulation steps.")
    exits_per_step: int | None = Field(
        default=3, ge=0, description="Random exits a step besides the last layer (stochastic exits); 0 for all."
    )
    token_share: float = Field(default=0.5, gt=0, le=1, description="Share of tokens each step's loss looks at.")
    distill: float = Field(
        default=0.5, ge=0, le=1, description="Share of an early exit's loss that follows the last layer, not the label."
    )
    rank: int = Field(default=32, ge=1, description="Of LoRA; its scale is twice that.")
    checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass to save memory.")

    @field_validator("exits_per_step")
    @classmethod
    def _all(cls, value: int | None) -> int | None:
        return value or None

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step reads."""
        return self.length * self.batch * self.accumulate


class LiteOptions(LiteRecipe, DocumentChoice, TrainingOptions, WithPresets):
    """Options of ``harness train lite``.

    Preset paper is GREEN-CODE's setting: 4 × 32 sequences a step, 2–3k steps, all exits, all tokens.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "method": "full",
            "exit_head": "shared",
            "weights_rule": "green-code",
            "learning_rate": 1e-5,
            "schedule": "linear",
            "steps": 2500,
            "length": 1024,
            "batch": 4,
            "accumulate": 32,
            "exits_per_step": 0,
            "token_share": 1.0,
            "distill": 0.0,
            "checkpointing": True,
        },
        "lora": {},
    }

    preset: Literal["paper", "lora"] = Field(
        default="lora",
        description="lora makes an adapter that runs find; paper tunes all weights, into a model folder of its own.",
    )
    split: Split = Field(default="train", description="Part of each dataset to learn from")
    documents: int | None = Field(default=None, ge=1, description="Documents of each source at most. Default: all.")
    weights: Literal["pretrained", "random"] = Field(default="pretrained", description="What tuning begins with")
    exit_points: str = Field(default="paper", description="paper, all, or layers such as 4,8,12.")
    start_from: str | None = Field(
        default=None, description="Tune the adapter and shortcuts of this folder, or shipped set, further."
    )
    save_steps: int = Field(default=50, ge=1, description="Steps between checkpoints.")
    resume: Resume = False


Coefficient = Annotated[float, Field(ge=0, le=1)]


class AgentSettings(Configuration):
    """How PPO learns (Schulman 2017, arXiv 1707.06347). The defaults are GREEN-CODE's Table III."""

    steps: int = Field(default=500_000, ge=1, description="Decisions to learn from, rounded up to whole rollouts.")
    rollout: int = Field(
        default=4096, ge=1, description="Decisions between two updates, over all episodes that run at once."
    )
    batch: int = Field(default=512, ge=2, description="Decisions per gradient step.")
    epochs: int = Field(default=6, ge=1, description="Passes over each rollout.")
    learning_rate: float = Field(default=5e-5, gt=0, allow_inf_nan=False, description="At the beginning; linear to 0.")
    discount: float = Field(default=0.99, ge=0, le=1, description="Of rewards a step later (γ in Table III).")
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="Of advantages (Schulman 2016, arXiv 1506.02438).")
    entropy: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="Weight of the policy's entropy.")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(64, 64),
        description="Units of each hidden layer, of policy and value network alike; tanh between. Repeatable.",
    )
    envs: int = Field(default=64, ge=1, description="Episodes at once; 1 with --live.")

    @model_validator(mode="after")
    def _whole_rollouts(self) -> Self:
        if self.rollout % self.envs:
            raise ValueError(f"--envs {self.envs} must divide the {self.rollout} steps of a rollout")
        return self


class AgentOptions(AgentSettings, ControllerOptions, WithPresets):
    """Options of ``harness train rl``.

    Preset paper is GREEN-CODE's Table III; tuned stopped earliest at 98 % agreement, with the savings reward.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"observation": "paper", "reward": "auto"},
        "tuned": {"steps": 2_000_000, "learning_rate": 1e-3, "discount": 0.0, "entropy": 0.05},
    }
    """With discount 0 an agent weighs each decision by its own reward alone: it learns where stopping pays, not how to
    plan.

    SmolLM2-135M, 253,000 traced tokens, held-out mean exit layer at 98 % agreement: Table III with Eq. 2 and 3 28.6;
    learning rate 1e-3, discount 0.9, entropy 0.05 27.9; with the savings reward and entropy 0.02 24.5; then discount 1
    27.5, discount 0 23.9; from there entropy 0.05 23.3, four times the steps 23.3, penalty 10 instead of 4 23.6, 128
    units 23.6.
    """

    preset: Literal["paper", "tuned"] = Field(default="tuned", description="Sets what is not given")
    reward: Literal["auto", "java", "python", "savings"] = Field(
        default="savings",
        description="savings; or GREEN-CODE's, java, python, or auto: one of these by the documents, also where "
        "one of their coefficients is given.",
    )
    alpha: Coefficient | None = Field(default=None, description="Weight of exiting right but late.")
    beta: Coefficient | None = Field(default=None, description="Weight of exiting too early.")
    gamma: Coefficient | None = Field(default=None, description="Weight of continuing in vain.")
    epsilon: Coefficient | None = Field(default=None, description="Penalty of exiting wrong and late.")
    penalty: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="With --reward savings: price of a wrong exit. Default: 4."
    )
    tokens: int = Field(default=15, ge=1, description="Tokens of an episode.")
    observation: ObservationName = "rich"
    live: bool = Field(default=False, description="Let the model generate (slow) instead of replaying.")
    sources: tuple[Source, ...] = Field(
        default=("embedded",), description="With --live: where the trace's documents are. Repeatable."
    )
    device: str = Field(default="auto", description="With --live: auto, cpu, cuda or cuda:N.")
    save_steps: int = Field(default=50_000, ge=1, description="Decisions between checkpoints.")
    resume: Resume = False
    optimum: bool = Field(
        default=False,
        description="Train nothing: say what a policy fitted to the reward does on the trace, beside thresholds and "
        "the model's agent; also written to optimum-NAME.json.",
    )

    @property
    def coefficients(self) -> dict[str, float]:
        """The reward's options that were given, by name."""
        names = ("alpha", "beta", "gamma", "epsilon", "penalty")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def filled(self) -> Self:
        """Return the same with the preset's values, and a reward that has the coefficients that were given."""
        filled = self.under(self.preset)
        if "reward" in self.model_fields_set or not self.coefficients.keys() - {"penalty"}:
            return filled
        return filled.replace(reward="auto")
