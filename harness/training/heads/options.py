"""Options of the recipes that train heads on a trace."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.config.model import Configuration, TaskName
from harness.training.options import ControllerOptions, ObservationName, Resume, TraceOptions

__all__ = ["ActionOptions", "ExcessOptions", "HeadOptions", "HeadRecipe", "ReturnOptions", "ReturnRecipe"]


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
