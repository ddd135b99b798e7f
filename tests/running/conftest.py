"""What runs of a tiny model share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def config(cli: Callable[..., Any], tiny_llama: Path, rows_file: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a small run in Python; ``cli`` is asked for its cheap surroundings."""
    return {
        "model": str(tiny_llama), "source": str(rows_file), "limit": 3, "max_new_tokens": 4, "energy": "none",
        "threads": 1, "out": tmp_path / "out",
    }  # fmt: skip


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's finished run is kept."""
    return tmp_path_factory.mktemp("kept") / "one"


@pytest.fixture
def finished(request: pytest.FixtureRequest, kept: Path, tmp_path: Path) -> Path:
    """A copy of a small finished run, in the folder ``runs``."""
    if not kept.exists():
        assert request.getfixturevalue("tiny_run")("--out", kept).code == 0
    return Path(shutil.copytree(kept, tmp_path / "runs" / "one"))
