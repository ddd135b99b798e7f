"""Self-speculation at a fixed depth and draft length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, Draft, DraftRule, ExitRule, ExitView, ModelInfo, Strategy


@dataclass(frozen=True)
class LayerSkip(Strategy):
    """Draft a fixed number of tokens with the first layers, then verify them with the others (lossless only).

    Rule: exit every token after layer E; after K of them full depth verifies all. Cost per check: 0.

    Source: Elhoushi et al., "LayerSkip", 2024, arXiv 2404.16710, section 4.3 (self-speculative decoding). Draft and
    verification share the first E layers' keys and values there, and verification starts from the states that drafts
    left with: ``recompute`` does that here for every strategy. `harness train lite --preset layerskip` trains as the
    paper does. What differs: other recipes may have trained the exits (a shortcut per exit then reads the drafts); a
    draft ends early where it would end the completion; decoding is greedy, so that a draft stands where it is full
    depth's arg-max.
    """

    default_decode: ClassVar[str] = "lossless"

    layer: Annotated[int, Field(ge=1, description="E, decoder layers that draft; an exit point")] = 14
    length: Annotated[int, Field(ge=1, le=64, description="K, tokens of a draft; --draft-max bounds it, too")] = 4

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Ask at the one layer.

        Raises:
            OptionError: the layer is not an exit point of the model.
        """
        return (model.exit_point(self.layer, f"layerskip:layer={self.layer}"),)

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Count the tokens of drafts."""
        return _Drafts(self.length)

    def should_exit(self, view: ExitView) -> Tensor:
        """Leave."""
        return torch.ones_like(view.rows, dtype=torch.bool)


class _Drafts(DraftRule):
    knows_drafts_alone: ClassVar[bool] = True

    def __init__(self, length: int) -> None:
        self._length = length

    def should_exit(self, view: ExitView) -> Tensor:
        return torch.ones_like(view.rows, dtype=torch.bool)

    def verify_now(self, draft: Draft) -> bool:
        return len(draft.tokens) >= self._length
