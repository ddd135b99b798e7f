"""A hub that is out of reach, and a catalogue name resolved without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.models.loading import ResolvedModel, resolve


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.models.loading.hub_in_reach", lambda: False)


@pytest.fixture
def resolved(no_hub: None) -> Callable[..., ResolvedModel]:
    """``resolved(name, **changes)``, random weights in float32 unless told otherwise."""

    def find(
        name: str, *, weights: str = "random", dtype: str = "float32", exit_points: str = "paper"
    ) -> ResolvedModel:
        return resolve(name, weights=weights, dtype=dtype, exit_points=exit_points)  # type: ignore[arg-type]

    return find
