"""Exit when a learned certainty is high enough: one head shared by all exit points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from harness.models.controllers import LearnedStrategy


@dataclass(frozen=True)
class LearnToExit(LearnedStrategy):
    """Exit when g(x) ≥ threshold, g one small network for all exit points that regresses their certainty.

    BERxiT's learning-to-exit module (Xin 2021, EACL, section 4.2): the certainty of an exit is 1 where its answer is
    right and 0 elsewhere, fitted by mean squared error. Here an answer is right when it is the last layer's. The score
    is an estimate of that certainty and may lie a little outside 0…1.
    """

    kind: ClassVar[str] = "lte"
    option: ClassVar[str] = "heads"
    probabilistic: ClassVar[bool] = True

    threshold: Annotated[
        float | None,
        Field(ge=0, le=2, description="least certainty; the head's own when left out; 2 never exits"),
    ] = None
    heads: Annotated[str, Field(description="trained head: a path, a name, or empty for the model's own")] = ""

    def exit_threshold(self, options: Mapping[str, float]) -> float:
        """Compare the certainty; a regression may score anything, so 2 stands for never."""
        return math.inf if options["threshold"] >= 2 else options["threshold"]
