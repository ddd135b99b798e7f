"""An executor without processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

from harness.contracts.executors import Executor, Happened, How, Job
from harness.study.executors.ray import SILENT
from harness.study.point_run import run_job


class Inline(Executor):
    """Measures points in this process, which spares a test the seconds of importing torch; a step is a process."""

    def __init__(self) -> None:
        self._job: Job | None = None

    @classmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        return cls()

    def has_room(self, job: Job) -> bool:
        return self._job is None

    def start(self, job: Job) -> None:
        self._job = job

    def wait(self) -> Happened:
        job, self._job = self._job, None
        assert job is not None
        return Happened(job, *self.run(job), "here")

    def run(self, job: Job) -> tuple[How, str]:
        """Run a job; return how it ended, and why."""
        here = replace(job, directory=job.directory.absolute()) if job.command is not None else job
        return run_job(here, SILENT, {"executor": "inline"})

    def close(self) -> None:
        pass
