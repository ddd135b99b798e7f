"""What runs of a tiny model share."""

from __future__ import annotations

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
