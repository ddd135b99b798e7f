"""Options of ``harness train lite``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from harness.config.model import DOCUMENT_TASKS, Configuration, Source, TaskName
from harness.config.presets import WithPresets
from harness.contracts import Split
from harness.contracts.loss_weights import WeightsRule
from harness.training.options import Resume, TrainingOptions

__all__ = ["LiteOptions", "LiteRecipe"]


class LiteRecipe(Configuration):
    """How to tune; saved in the artefacts. The defaults are what two cores can do in an hour."""

    method: Annotated[
        Literal["lora", "full"],
        Field(description="lora (Hu 2021, arXiv 2106.09685, on every linear map of every layer) or full."),
    ] = "lora"
    exit_head: Annotated[
        Literal["shared", "shortcut"],
        Field(description="shared (the model's own) or shortcut (a linear map per exit before it, trained along)."),
    ] = "shortcut"
    weights_rule: Annotated[WeightsRule, Field(description="Loss weights of the exits")] = "uniform"
    learning_rate: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="Of the weights, or of LoRA's factors.")
    ] = 3e-4
    shortcut_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False, description="Of the shortcuts.")] = 5e-4
    schedule: Annotated[
        Literal["cosine", "linear", "constant"],
        Field(description="Learning rate after a warm-up of 3 % of the steps"),
    ] = "cosine"
    steps: Annotated[int, Field(ge=1, description="Optimiser steps.")] = 1000
    length: Annotated[int, Field(ge=2, description="Tokens of a packed sequence.")] = 256
    batch: Annotated[int, Field(ge=1, description="Sequences a device takes at once.")] = 8
    accumulate: Annotated[int, Field(ge=1, description="Gradient accumulation steps.")] = 1
    exits_per_step: Annotated[int, Field(ge=0)] | None = Field(
        default=3, description="Random exits a step besides the last layer (stochastic exits); 0 for all."
    )
    token_share: Annotated[float, Field(gt=0, le=1, description="Share of tokens each step's loss looks at.")] = 0.5
    distill: Annotated[
        float,
        Field(ge=0, le=1, description="Share of an early exit's loss that follows the last layer, not the label."),
    ] = 0.5
    rank: Annotated[int, Field(ge=1, description="Of LoRA; its scale is twice that.")] = 32
    checkpointing: Annotated[bool, Field(description="Recompute activations in the backward pass to save memory.")] = (
        False
    )

    @field_validator("exits_per_step")
    @classmethod
    def _all(cls, value: int | None) -> int | None:
        return value or None

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step reads."""
        return self.length * self.batch * self.accumulate


class LiteOptions(LiteRecipe, TrainingOptions, WithPresets):
    """What ``harness train lite`` can be told.

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
        "cpu": {},
    }

    preset: Annotated[
        Literal["auto", "paper", "cpu"], Field(description="paper, cpu, or auto: paper where there is a GPU.")
    ] = "auto"
    tasks: Annotated[tuple[TaskName, ...], Field(description="Task whose documents it learns from. Repeatable.")] = (
        DOCUMENT_TASKS
    )
    sources: Annotated[
        tuple[Source, ...], Field(description="embedded, hub, or PATH. Repeatable; each in equal shares.")
    ] = ("embedded",)
    split: Annotated[Split, Field(description="Part of each dataset to learn from")] = "train"
    documents: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Documents of each source at most. Default: all."
    )
    weights: Annotated[Literal["pretrained", "random"], Field(description="What tuning begins with")] = "pretrained"
    exit_points: Annotated[str, Field(description="paper, all, or layers such as 4,8,12.")] = "paper"
    start_from: str | None = Field(
        default=None, description="Tune the adapter and maps of this folder, or shipped set, further."
    )
    save_steps: Annotated[int, Field(ge=1, description="Steps between checkpoints.")] = 50
    resume: Resume = False
