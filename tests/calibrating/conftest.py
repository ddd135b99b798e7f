"""A strategy at three thresholds on six small documents, decoded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness import RunConfig
from harness.running.reading import read_run
from harness.running.runner import execute
from reports.recorded import RecordedRun

SETTINGS = ("confidence:threshold=0.99", "confidence:threshold=0.15", "confidence:threshold=0.05")
"""Never exits, exits sometimes, exits almost always."""


@pytest.fixture(scope="session")
def decoded(make_model: Callable[..., Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    """The run."""
    config = RunConfig(
        model=str(make_model("llama")),
        source=str(rows_file),
        limit=6,
        max_new_tokens=5,
        energy="none",
        idle_s=0,
        threads=1,
        strategies=(SETTINGS[1], SETTINGS[2], SETTINGS[0]),
        out=tmp_path_factory.mktemp("decoded") / "run",
    )
    return read_run(execute(config).directory)
