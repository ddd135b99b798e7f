"""Options of the recipes that train heads on a trace."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.model import Configuration
from harness.training.options import ControllerOptions, ObservationName, Resume

__all__ = ["HeadOptions", "HeadRecipe"]


class HeadRecipe(Configuration):
    """How to train heads; saved in the artefact."""

    objective: Annotated[
        Literal["likelihood", "certainty"],
        Field(description="likelihood (cross-entropy with the label) or certainty (mean squared error, BERxiT)."),
    ] = "likelihood"
    shared: Annotated[bool, Field(description="One network for all exit points instead of one each.")] = False
    hidden: Annotated[int, Field(ge=0, description="Width of the hidden layer; 0: linear, as in the paper.")] = 128
    epochs: Annotated[int, Field(ge=1, description="Passes over the trace.")] = 20
    learning_rate: Annotated[float, Field(gt=0, le=1, description="Peak of a one-cycle schedule, AdamW.")] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, description="Of AdamW.")] = 1e-2
    auxiliary: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="Weight of two further targets, confidence and entropy; 0: none."),
    ] = 0.3
    batch: Annotated[int, Field(ge=1, description="Tokens a step, each at every exit point.")] = 512


class HeadOptions(HeadRecipe, ControllerOptions):
    """What a recipe that trains heads can be told."""

    observation: ObservationName = "rich"
    resume: Resume = False
