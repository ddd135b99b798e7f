"""Tuning a tiny model, for every test of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts.recipes import Trained, TrainingRun
from harness.training.lite.fit import train_lite
from harness.training.recipes import Lite, LiteRecipe

QUICK = LiteRecipe(steps=4, length=32, batch=2, rank=4, learning_rate=0.01, token_share=1.0)


@pytest.fixture(scope="session")
def tune(corpus_file: Path) -> Callable[..., Trained]:
    """``tune(model folder, out, recipe=…, source=…)``: `harness train lite` as a function."""

    def run(model: Path, out: Path, recipe: LiteRecipe = QUICK, source: Path = corpus_file, **changes: Any) -> Trained:
        settings: dict[str, Any] = {
            "preset": "lora", "model": str(model), "out": out, "tasks": ["py150"], "sources": [str(source)],
            "documents": 30, "save_steps": 2,
        }  # fmt: skip
        options = Lite.build({**recipe.model_dump(), **settings, **changes})
        return train_lite(options, TrainingRun("lite", "harness train lite"))

    return run


@pytest.fixture(scope="session")
def tuned(tune: Callable[..., Trained], tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny llama's artefacts, after four steps; nobody changes it."""
    out = tmp_path_factory.mktemp("tuned") / "artefacts"
    assert tune(tiny_llama, out).finished
    return out
