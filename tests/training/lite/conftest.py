"""Tuning a tiny model, for every test of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.training.lite.fit import FitResult
from harness.training.lite.recipe import LiteRecipe
from harness.training.lite.train_lite import train_lite
from harness.training.watch import Silent

QUICK = LiteRecipe(steps=4, length=32, batch=2, rank=4, learning_rate=0.01, token_share=1.0)


@pytest.fixture(scope="session")
def tune(corpus_file: Path) -> Callable[..., FitResult]:
    """``tune(model folder, out, recipe=…, source=…)``: `harness train lite` as a function."""

    def run(
        model: Path, out: Path, recipe: LiteRecipe = QUICK, source: Path = corpus_file, **changes: Any
    ) -> FitResult:
        settings: dict[str, Any] = {
            "weights": "pretrained", "exit_points": "paper", "split": "train", "documents": 30, "seed": 0,
            "save_steps": 2, "resume": False, "command": "harness train lite", "watch": Silent(),
        }  # fmt: skip
        return train_lite(str(model), ["py150"], [str(source)], out, recipe, **settings | changes)

    return run
