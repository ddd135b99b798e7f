"""How far a study is, read from its folder; it may be running meanwhile.

Whoever looks shares the machine with what is measured: no torch is loaded, of the log only what is new is read, of a
finished run its summary alone, and that once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean

from harness.errors import StoreError
from harness.records.summary import SUMMARY_VERSION, Summary
from harness.store.committed import WINDOWS
from harness.store.record_files import read_document
from harness.store.run_directory import SUMMARY, is_held, last_seal
from harness.study.ledger import DONE, RUNS, STUDY, Event, EventLog, StudyRecord

MEASURED, FAILED, RUNNING, STOPPED = 0, 1, 3, 4
"""Exit codes of ``harness watch``: :attr:`Status.exit_code` says what they mean."""


@dataclass(frozen=True)
class Running:
    """A point that is being measured, or a step (``step NAME``) that is being made, which has no windows."""

    point: str
    windows: int | None
    since: str


@dataclass(frozen=True)
class Best:
    """One operating point of a finished run; its speed-up is over full depth of the run, whole requests."""

    point: str
    task: str
    operating_point: str
    lossless: bool
    speedup: float
    edit_similarity: float | None


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Attributes:
        failed: name → reason, of points and of steps.
        running: points and steps that are begun and not ended; none where nobody measures the study.
        is_held: whether a process measures the study; ``None`` where locks cannot be asked for.
        left_s: seconds that the points that are left will take at the mean pace so far, with as many at once as run
            now; ``None`` before the first is finished, and where nobody measures them.
    """

    points: int
    finished: tuple[str, ...]
    merged: tuple[str, ...]
    failed: dict[str, str]
    running: tuple[Running, ...]
    is_held: bool | None
    left_s: float | None
    steps: int = 0
    made: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """Points and steps that are neither done nor failed."""
        return self.points + self.steps - self._done - len(self.failed)

    @property
    def _done(self) -> int:
        return len(self.finished) + len(self.merged) + len(self.made)

    @property
    def waiting(self) -> int:
        """Points and steps that are left and not running: not begun, to be tried again, or interrupted."""
        return self.left - len(self.running)

    @property
    def exit_code(self) -> int:
        """0 where all is done, 3 while it goes on, 1 where it is over and some failed, 4 where it was stopped.

        It goes on while a process holds it, which may try failed points again. Where locks cannot be asked for, what is
        left counts as going on.
        """
        if self._done == self.points + self.steps:
            return MEASURED
        if self.is_held or (self.is_held is None and self.left):
            return RUNNING
        return STOPPED if self.left else FAILED


class StudyView:
    """A study that is looked at once, or again and again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = EventLog(path)
        self._last: dict[str, Event] = {}
        self._took: dict[str, float] = {}
        self._done: list[Event] = []
        self._best: dict[Event, tuple[Best, ...]] = {}

    def look(self) -> Status:
        """Read how far the study is now."""
        if not (self._path / STUDY).exists():
            raise StoreError(
                f"{self._path} is no study: it has no {STUDY}. Give the folder that `harness study` named."
            )
        record, _ = read_document(StudyRecord, self._path / STUDY)  # it may have grown
        points, steps = frozenset(record.points.values()), frozenset(record.steps.values())
        held = is_held(self._path)  # before the log: whoever ends in between has written all of it
        for event in self._log.read():
            self._last[event.identity] = event
            if event.what == "finished" and event.took_s is not None:
                self._took[event.identity] = event.took_s
        last = [event for identity, event in self._last.items() if identity in points or identity in steps]
        done = [event for event in last if event.what in DONE]
        self._done = [event for event in done if event.identity in points]
        failed = [event for event in last if event.what == "failed"]
        begun = [event for event in last if event.what == "started" and held is not False]
        left = len(points) - len(self._done) - sum(event.identity in points for event in failed)
        left_s = None if left else 0.0
        took = [seconds for identity, seconds in self._took.items() if identity in points]
        if left and took and held is not False:
            left_s = fmean(took) * left / max(1, sum(event.identity in points for event in begun))
        return Status(
            points=len(points),
            finished=tuple(event.point for event in self._done if event.what == "finished"),
            merged=tuple(event.point for event in self._done if event.what == "merged"),
            failed={event.point: event.reason for event in failed},
            running=tuple(
                Running(
                    each.point, None if each.identity in steps else _windows(self._path / RUNS / each.point), each.at
                )
                for each in begun
            ),
            is_held=held,
            left_s=left_s,
            steps=len(steps),
            made=tuple(event.point for event in done if event.identity in steps),
        )

    def best(self, count: int = 5) -> list[Best]:
        """Return the fastest operating points of what the last look found measured: lossless ones first.

        Runs whose summary cannot be read are left out; full depth itself, and bounds, are none.
        """
        for event in self._done:
            if event not in self._best:
                self._best[event] = _read_best(self._path / RUNS / event.point)
        found = sorted((each for event in self._done for each in self._best[event]), key=lambda each: -each.speedup)
        lossless = [each for each in found if each.lossless][:count]
        return lossless + [each for each in found if not each.lossless][:count]


def _windows(directory: Path) -> int:
    try:
        with (directory / WINDOWS).open("rb") as file:
            return sum(line.endswith(b"\n") for line in file)
    except OSError:
        return 0


def _read_best(directory: Path) -> tuple[Best, ...]:
    """Return the operating points of a summary that is whole, and of the records whose last seal is the one beside it.

    The records themselves are not read: that is for reports.
    """
    try:
        summary, _ = read_document(Summary, directory / SUMMARY, SUMMARY_VERSION)
        if summary.records != last_seal(directory):
            return ()
    except StoreError:
        return ()
    found = []
    for row in summary.rows:
        speedup = row.value("speedup")
        if speedup is not None and (row.lossless or row.strategy not in ("full", "oracle")):
            similarity = row.value("edit_similarity")
            found.append(Best(directory.name, row.task, row.operating_point, row.lossless, speedup, similarity))
    return tuple(found)


def seconds_since(at: str, now: datetime) -> float:
    """Return how long ago an event was."""
    return (now - datetime.fromisoformat(at)).total_seconds()
