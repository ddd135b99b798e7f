"""The rival that is no early exit: a model without its top layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import ExitView, ModelInfo, Strategy
from harness.errors import OptionError


@dataclass(frozen=True)
class Pruned(Strategy):
    """Drop the top k layers for every token that is generated.

    Rule: leave after L − k layers, which must be an exit point. What reads the state there is the run's exit head: the
    model's own norm and LM head (``--exit-head shared``: without a map), or a linear map before them (``shortcut``:
    with one), as pruning is healed. Cost per check: 0.

    Source: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", ICLR 2025, arXiv 2403.17887, and
    Men et al., "ShortGPT", Findings of ACL 2025, arXiv 2403.03853. What differs: a consecutive block at the end is
    dropped, where Gromov et al. choose a block by how alike the states before and after it are (or all of the deepest
    but the last), and Men et al. single layers, by the same ("block influence"); and prompts still run all layers,
    which yields the first token from full depth, too: the time until it is no pruned model's. The tokens after it read
    keys and values of the kept layers alone, as in one, and what they skip is never run.
    """

    layers: Annotated[
        int | None, Field(ge=1, description="k, layers that are dropped; all behind the last exit point when left out")
    ] = None

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """The last layer that is kept; none of a model without exit points, which is then whole.

        Raises:
            OptionError: it is no exit point of the model.
        """
        if self.layers is None:
            return model.exit_points[-1:]
        kept = model.num_layers - self.layers
        if kept not in model.exit_points:
            known = ", ".join(str(model.num_layers - point) for point in reversed(model.exit_points))
            raise OptionError(
                f"pruned:layers={self.layers} keeps {kept} of {model.num_layers} layers of {model.name}, and that is "
                f"no exit point. Drop one of {known}, or widen the exit points with --exit-points all."
            )
        return (kept,)

    def should_exit(self, view: ExitView) -> Tensor:
        """Leave."""
        return torch.ones_like(view.rows, dtype=torch.bool)
