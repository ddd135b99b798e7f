"""Options of ``harness train shortlist`` and ``harness train lowrank``."""

from __future__ import annotations

from pydantic import Field

from harness.config.documents import DocumentChoice
from harness.config.model import Folder
from harness.training.options import TrainingOptions

__all__ = ["LowRankOptions", "ShortlistOptions"]

ARTEFACTS = "Where the model's adapter and shortcuts are: a folder of `harness train`, or a shipped set."


class ShortlistOptions(DocumentChoice, TrainingOptions):
    """Options of ``harness train shortlist``."""

    documents: int | None = Field(default=None, ge=2, description="Documents of each source at most. Default: all.")
    size: int = Field(default=16384, ge=2, description="Tokens that are ranked: the largest shortlist there can be.")


class LowRankOptions(TrainingOptions):
    """Options of ``harness train lowrank``."""

    traces: Folder = Field(description="Folder that `harness trace` made.")
    artefacts: str | None = Field(default=None, description=ARTEFACTS)
