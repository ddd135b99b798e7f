"""A linear map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from harness.contracts import ExitModule, ExitModuleFacts, LinearFit


class LinearExit(ExitModule):
    """An affine map of the state, W h + b, which has the last layer's in closed form.

    Source: Yom Din, Karidi, Choshen and Geva 2023, "Jump to Conclusions", arXiv 2303.09435.
    """

    facts: ClassVar[ExitModuleFacts] = ExitModuleFacts(note="an affine map of the state")

    @classmethod
    def shapes(cls, hidden_size: int, size: int | None) -> Mapping[str, tuple[int, int]]:
        """One square matrix, without a prefix."""
        return {"": (hidden_size, hidden_size)}

    @classmethod
    def begin(cls, fit: LinearFit, size: int | None) -> Mapping[str, Tensor]:
        """The map itself."""
        return {"weight": fit.weight, "bias": fit.bias}

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map the state."""
        return self.maps[""](hidden)
