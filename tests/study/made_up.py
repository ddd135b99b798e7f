"""Studies without commands and without models: what a test does not ask about is made up."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.contracts.executors import Happened, How, Job
from harness.study.conduct import Outcome, conduct
from harness.study.grid import Point, StudyConfig, expand
from harness.study.ledger import Event, EventLog, StudyDirectory
from tests.made_up_runs import write_runs

from .inline import Inline

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


def open_study(folder: Path, seeds: int, *, dry: bool = False) -> StudyDirectory:
    """Open a study with a point for each seed."""
    grid = StudyConfig.build({"grid": {"seed": list(range(seeds))}})
    return StudyDirectory(folder, grid, expand(grid), dry=dry)


def read_events(folder: Path) -> list[Event]:
    """All that the log of a study says."""
    return list(EventLog(folder).read())


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


class Watching:
    """Notes what happens, and does something at the first window of each attempt."""

    def __init__(self, at_window: Callable[[Happened], None]) -> None:
        self.ends: list[str] = []
        self._at_window = at_window

    def begin(self, total: int, done: int) -> None: ...

    def happened(self, event: Happened) -> None:
        if event.ended:
            self.ends.append(event.how)
        elif event.windows is not None and event.windows[0] > 0:
            self._at_window(event)

    def ended(self, name: str, reason: str) -> None: ...


def conducted(study: StudyDirectory, **options: Any) -> tuple[Outcome, list[str]]:
    """What became of a study, and the names of what was begun, in this order."""
    executor = Instant()
    with study:
        outcome = conduct(study, executor, Watching(lambda event: None), **options)
    return outcome, [job.name for job in executor.jobs]
