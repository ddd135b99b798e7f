"""Studies whose runs are made up: no model is loaded."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from harness.study.grid import Point, StudyConfig, expand
from harness.study.ledger import StudyDirectory
from tests.made_up_runs import write_runs

__all__ = ["damage", "open_study", "put_runs"]


def open_study(folder: Path, seeds: int, *, dry: bool = False) -> StudyDirectory:
    """Open a study with a point for each seed."""
    grid = StudyConfig.build({"grid": {"seed": list(range(seeds))}})
    return StudyDirectory(folder, grid, expand(grid), dry=dry)


def put_runs(study: StudyDirectory, *points: Point) -> None:
    """Put a finished run of four windows where that of each point belongs; nothing is logged."""
    with tempfile.TemporaryDirectory() as made:
        write_runs(Path(made), len(points), samples=2, points=2)
        for run, point in zip(sorted(Path(made).iterdir()), points, strict=True):
            shutil.copytree(run, study.directory(point))


def damage(file: Path, line: int) -> None:
    """Make a line of a file, counted from 1, none that could be read."""
    lines = file.read_bytes().splitlines(keepends=True)
    lines[line - 1] = b'{"damaged' + lines[line - 1][9:]
    file.write_bytes(b"".join(lines))
