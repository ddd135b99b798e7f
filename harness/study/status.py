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
from harness.store.record_files import read_document
from harness.store.run_directory import SUMMARY, WINDOWS, is_held, last_seal
from harness.study.ledger import DONE, RUNS, STUDY, Event, EventLog, StudyRecord

__all__ = ["FAILED", "MEASURED", "RUNNING", "STOPPED", "Best", "Running", "Status", "StudyView", "seconds_since"]

MEASURED, FAILED, RUNNING, STOPPED = 0, 1, 3, 4
"""Exit codes of ``harness watch``: :attr:`Status.exit_code` says what they mean."""


@dataclass(frozen=True)
class Running:
    """A point that is being measured.

    Attributes:
        point: its name.
        windows: finished so far.
        since: UTC time, ISO 8601.
    """

    point: str
    windows: int
    since: str


@dataclass(frozen=True)
class Best:
    """One operating point of a finished run.

    Attributes:
        point: name of the run.
        task, operating_point: of the row.
        lossless: whether its tokens are full depth's.
        speedup: over full depth of the run, whole requests.
        edit_similarity: mean over samples; ``None`` where it was not scored.
    """

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
        points: how many there are.
        finished, merged: names of those that are measured; merged ones elsewhere.
        failed: name → reason.
        running: begun and not ended; none where nobody measures the study.
        is_held: whether a process measures the study; ``None`` where locks cannot be asked for.
        left_s: seconds that what is left will take at the mean pace so far, with as many points at once as run now;
            ``None`` before the first is finished, and where nobody measures them.
    """

    points: int
    finished: tuple[str, ...]
    merged: tuple[str, ...]
    failed: dict[str, str]
    running: tuple[Running, ...]
    is_held: bool | None
    left_s: float | None

    @property
    def left(self) -> int:
        """Points that are neither measured nor failed."""
        return self.points - len(self.finished) - len(self.merged) - len(self.failed)

    @property
    def waiting(self) -> int:
        """Points that are left and not being measured: not begun, to be tried again, or interrupted."""
        return self.left - len(self.running)

    @property
    def exit_code(self) -> int:
        """0 where all are measured, 3 while it goes on, 1 where it is over and some failed, 4 where it was stopped.

        It goes on while a process holds it, which may try failed points again. Where locks cannot be asked for, what is
        left counts as going on.
        """
        if len(self.finished) + len(self.merged) == self.points:
            return MEASURED
        if self.is_held or (self.is_held is None and self.left):
            return RUNNING
        return STOPPED if self.left else FAILED


class StudyView:
    """A study that is looked at once, or again and again.

    Args:
        path: its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = EventLog(path)
        self._last: dict[str, Event] = {}
        self._took: dict[str, float] = {}
        self._done: list[Event] = []
        self._best: dict[Event, tuple[Best, ...]] = {}
        self._state: tuple[int, int, int] | None = None
        self._identities: frozenset[str] = frozenset()

    def look(self) -> Status:
        """Read how far the study is now.

        Raises:
            StoreError: the folder is no study, or cannot be read.
        """
        self._read_points()
        held = is_held(self._path)  # before the log: whoever ends in between has written all of it
        for event in self._log.read():
            self._last[event.identity] = event
            if event.what == "finished" and event.took_s is not None:
                self._took[event.identity] = event.took_s
        last = [event for identity, event in self._last.items() if identity in self._identities]
        self._done = [event for event in last if event.what in DONE]
        failed = {event.point: event.reason for event in last if event.what == "failed"}
        begun = [event for event in last if event.what == "started" and held is not False]
        left = len(self._identities) - len(self._done) - len(failed)
        return Status(
            points=len(self._identities),
            finished=tuple(event.point for event in self._done if event.what == "finished"),
            merged=tuple(event.point for event in self._done if event.what == "merged"),
            failed=failed,
            running=tuple(Running(each.point, _windows(self._path / RUNS / each.point), each.at) for each in begun),
            is_held=held,
            left_s=0.0 if not left else None if held is False else self._left_s(left, len(begun)),
        )

    def _read_points(self) -> None:
        """Read which points there are, where that has changed: the study may be given a larger grid."""
        file = self._path / STUDY
        try:
            facts = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"{self._path} is no study: it has no {STUDY}. Give the folder that `harness study` named."
            ) from None
        state = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if state != self._state:
            record, _ = read_document(StudyRecord, file)
            self._state, self._identities = state, frozenset(record.points.values())

    def _left_s(self, left: int, at_once: int) -> float | None:
        took = [seconds for identity, seconds in self._took.items() if identity in self._identities]
        return fmean(took) * left / max(1, at_once) if took else None

    def best(self, count: int = 5) -> list[Best]:
        """Return the fastest operating points of what the last look found measured: lossless ones first.

        Runs whose summary cannot be read are left out; full depth itself, and bounds, are none.

        Args:
            count: of lossless ones at most, and of those that lose text.
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
