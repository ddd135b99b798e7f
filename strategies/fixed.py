"""Fixed-depth exit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import ExitView, ModelInfo, Strategy


@dataclass(frozen=True)
class Fixed(Strategy):
    """Exit every token after the same layer.

    Rule: exit at layer k. Cost per check: 0, nothing is computed.

    Source: Ilager, Briem and Brandic, "GREEN-CODE", 2025, Fig. 1 (fixed exiting); the control any
    adaptive strategy has to beat at equal mean depth. Its depths never mix, so no token reads what ``propagate``
    fills in: it yields the same tokens under every KV policy that keeps a cache.
    """

    default_kv: ClassVar[str] = "propagate"

    layer: Annotated[int, Field(ge=1, description="decoder layers executed for every token; an exit point")] = 14

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Ask at the one layer.

        Raises:
            OptionError: the layer is not an exit point of the model.
        """
        return (model.exit_point(self.layer, f"fixed:layer={self.layer}"),)

    def should_exit(self, view: ExitView) -> Tensor:
        """Leave."""
        return torch.ones(len(view.rows), dtype=torch.bool)
