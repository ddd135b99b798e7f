"""What a study adds to its points (grid, two flushed lines of the log), and how soon it goes on when all is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from harness.contracts.executors import Executor, Happened, Job
from harness.study.conduct import conduct
from harness.study.grid import StudyConfig, expand
from harness.study.ledger import StudyDirectory

MOST_PER_POINT_S = 0.05
MOST_TO_RESUME_S = 3.0


class Instant(Executor):
    """Finishes every point at once, with the one file that says so."""

    @classmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        return cls()

    def has_room(self) -> bool:
        return not hasattr(self, "_job")

    def start(self, job: Job) -> None:
        self._job = job

    def wait(self) -> Happened:
        job = self._job
        del self._job
        job.directory.mkdir(parents=True)
        (job.directory / "summary.json").touch()
        return Happened(job, "done", place="here:1")

    def close(self) -> None: ...


class Nobody:
    def begin(self, total: int, done: int) -> None: ...

    def happened(self, event: Happened) -> None: ...

    def ended(self, name: str, reason: str) -> None: ...


@contextmanager
def timed() -> Iterator[list[float]]:
    found = [time.perf_counter()]
    yield found
    found[0] = time.perf_counter() - found[0]


@pytest.mark.parametrize("points", [100, 1000, 10_000])
def test_scheduling_and_storage_of_a_point(benchmark: Any, tmp_path: Path, points: int) -> None:
    grid = StudyConfig.build({"run": {"limit": 100}, "grid": {"seed": list(range(points))}})

    def study() -> int:
        with StudyDirectory(tmp_path / "s", grid, expand(grid)) as directory:
            return conduct(directory, Instant(), Nobody()).finished

    with timed() as first:
        assert benchmark.pedantic(study, rounds=1) == points
    with timed() as again:
        assert study() == points
    print(f"\n  {points} points: {first[0] / points * 1e3:.2f} ms each, all of them again in {again[0]:.2f} s")
    assert first[0] / points < MOST_PER_POINT_S
    assert again[0] < MOST_TO_RESUME_S
