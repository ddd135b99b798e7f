"""A hub that is out of reach, and a catalogue name resolved without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.contracts import ModelRequest
from harness.models.model import ResolvedModel, resolve


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("configuration", "tokenizer", "weights"):
        monkeypatch.setattr(f"harness.models.{module}.hub_in_reach", lambda: False)


@pytest.fixture
def resolved(no_hub: None) -> Callable[..., ResolvedModel]:
    """``resolved(name, **changes)``, random weights in float32 unless told otherwise."""

    def find(name: str, **changes: Any) -> ResolvedModel:
        return resolve(ModelRequest(name, **{"weights": "random", "exit_head": "shared"} | changes))

    return find
