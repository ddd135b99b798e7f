"""Options of ``harness train predictor``."""

from __future__ import annotations

from pydantic import Field

from harness.training.options import ControllerOptions

__all__ = ["PredictorOptions"]


class PredictorOptions(ControllerOptions):
    """Options of the recipe of SpecEE's predictors."""

    head: str = Field(
        default="shortlist", description="What proposes candidates at the first exit point: full, or a cheap head."
    )
    candidates: int = Field(default=8, ge=2, le=256, description="Tokens that are looked at.")
    hidden: int = Field(default=32, ge=1, description="Width of the hidden layer.")
    epochs: int = Field(default=20, ge=1, description="Passes over the trace.")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="Peak of a one-cycle schedule, AdamW.")
