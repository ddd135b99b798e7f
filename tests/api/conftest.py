"""The tiny model as the Python API gives it, and a strategy that no entry point names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

import harness
from harness.api.model import Model
from harness.contracts import ExitView, Strategy


@dataclass(frozen=True)
class Sure(Strategy):
    """Exit when the exit's own token is likely enough."""

    least: float = 0.2

    def should_exit(self, view: ExitView) -> Tensor:
        return view.top_probability >= self.least


@pytest.fixture
def sure() -> type[Strategy]:
    return Sure


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return harness.load(tiny_llama, weights_format="float32")
