"""Steps without processes: what a command would leave is put there at once, or it ends as a test says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from harness.contracts.executors import Executor, Happened, Job
from harness.study.grid import StudyConfig, expand
from harness.study.ledger import StudyDirectory
from harness.study.step_run import make_step

__all__ = ["HEADS", "TRACES", "Commands", "Instant", "open_steps"]

TRACES = {"name": "traces", "command": "trace --model m --threads 1"}
HEADS = {"name": "heads", "command": "train classifier --model m --traces {traces}"}


class Commands:
    """Stands for :func:`harness.study.step_run._run`.

    Attributes:
        called: words of every command.
        ends: name of a step → exit code and last lines of its next attempts; the others succeed.
    """

    def __init__(self) -> None:
        self.called: list[list[str]] = []
        self.ends: dict[str, list[tuple[int, str]]] = {}

    def __call__(
        self, words: list[str], threads: int | None, tell: Callable[[str], None], lock: object
    ) -> tuple[int, deque[str]]:
        self.called.append(words)
        tell(f"{words[0]} …")
        out = Path(words[words.index("--out") + 1])
        code, line = (self.ends.get(out.name.rpartition("-")[0]) or [(0, "made")]).pop(0)
        out.mkdir(exist_ok=True)
        (out / ("half.json" if code else "made.json")).write_text(" ".join(words))
        return code, deque(["warning: mind", *line.splitlines()])


class Instant(Executor):
    """Makes steps at once, and says of points that they are measured."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._job: Job | None = None

    @classmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        return cls()

    def has_room(self, job: Job) -> bool:
        return self._job is None

    def start(self, job: Job) -> None:
        self.jobs.append(job)
        self._job = job

    def wait(self) -> Happened:
        job, self._job = self._job, None
        assert job is not None
        if job.command is None:
            return Happened(job, "done")
        return Happened(job, *make_step(job.directory, job.command, job.inputs, lambda line: None), "here")

    def close(self) -> None:
        pass


def open_steps(folder: Path, *steps: dict[str, Any], dry: bool = False, **tables: Any) -> StudyDirectory:
    """Open a study with these steps, and what else its file declares."""
    declared = StudyConfig.build({"step": list(steps), **tables})
    return StudyDirectory(folder, declared, expand(declared), dry=dry)
