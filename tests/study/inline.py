"""An executor without processes: measures a point in this one, which spares a test the seconds of importing torch.

A step is a process all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from harness.contracts.executors import Executor, Happened, How, Job
from harness.models.model import KeptModel
from harness.records import WindowRecord
from harness.study.point_run import measure_point
from harness.study.step_run import make_step
from harness.study.steps import filled_settings


class Inline(Executor):
    """Measure points here."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._model = KeptModel()

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
        if job.command is not None:
            how, text = make_step(job.directory.absolute(), job.command, job.inputs, lambda line: None)
            return Happened(job, how, text, "here")
        return Happened(job, *self.measured(job), "here")

    def measured(self, job: Job) -> tuple[How, str]:
        """Measure a point; return how it ended, and why."""
        settings = filled_settings(job.settings, job.inputs)
        return measure_point(job.directory, settings, _Silent(), self._model, {"executor": "inline"})

    def close(self) -> None:
        pass


class _Silent:
    def stage(self, text: str) -> None: ...

    def begin(self, total: int, done: int, directory: Path) -> None: ...

    def window(self, record: WindowRecord) -> None: ...
