"""Steps without processes: what a command would leave is put there at once, or it ends as a test says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.contracts.executors import How, Job
from harness.study.grid import StudyConfig, expand
from harness.study.ledger import StudyDirectory

from .inline import Inline

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


class Instant(Inline):
    """Makes steps at once, and says of points that they are measured."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[Job] = []

    def start(self, job: Job) -> None:
        self.jobs.append(job)
        super().start(job)

    def run(self, job: Job) -> tuple[How, str]:
        return ("done", "") if job.command is None else super().run(job)


def open_steps(folder: Path, *steps: dict[str, Any], dry: bool = False, **tables: Any) -> StudyDirectory:
    """Open a study with these steps, and what else its file declares."""
    declared = StudyConfig.build({"step": list(steps), **tables})
    return StudyDirectory(folder, declared, expand(declared), dry=dry)
