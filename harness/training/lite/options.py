"""Options of ``harness train lite``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from harness.config.documents import DocumentChoice
from harness.config.model import Configuration
from harness.config.presets import WithPresets
from harness.contracts import Split
from harness.contracts.loss_weights import WeightsRule
from harness.training.options import Resume, TrainingOptions

__all__ = ["LiteOptions", "LiteRecipe"]


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
