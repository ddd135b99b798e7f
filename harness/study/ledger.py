"""The directory of a study: what was declared, a run directory per point, and a log of what became of each.

``study.json`` is written once; ``events.jsonl`` is appended to, a line per event, each flushed to the disk (``fsync``);
a torn last line is cut off. One process at a time writes them, under a lock that dies with it. The log only speeds
things up and says why something failed: whether a point is measured, its run directory decides. Nothing in here is an
absolute path, so that the folder can be moved, and copied while it grows: of a run whose files were copied at different
moments, all windows that are whole are kept (:mod:`harness.store.intact`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, Self

from harness.appearance.visible_text import shell_word
from harness.errors import StoreError
from harness.host.atomic_files import unfinished
from harness.records import SCHEMA_VERSION
from harness.records.record import Record
from harness.store.intact import keep_intact
from harness.store.record_files import append, line_of, lines, parse, read_document, write_document
from harness.store.run_directory import LOCK, SAMPLES, SUMMARY, WINDOWS, RunDirectory, lock_folder
from harness.study.grid import Point, StudyConfig
from harness.study.point_run import is_measured

__all__ = ["EVENTS", "RUNS", "STUDY", "Event", "StudyDirectory", "StudyRecord", "read_events"]

STUDY, EVENTS, RUNS, ASIDE = "study.json", "events.jsonl", "runs", "aside"

DONE = ("finished", "merged")
"""What says that a point is measured."""

What = Literal["started", "finished", "failed", "retried", "merged"]


class StudyRecord(Record):
    """What a study was made from.

    Attributes:
        schema_version: of the files of a study.
        created: UTC time, ISO 8601.
        declared: the grid, its preset laid under it; the last one that was given.
        points: name → identity of every point of the grid.
    """

    schema_version: int
    created: str
    declared: dict[str, Any]
    points: dict[str, str]


class Event(Record):
    """Something that became of a point.

    Attributes:
        at: UTC time, ISO 8601.
        point: name of its run directory.
        identity: hash over its settings.
        what: happened; ``retried`` says that an attempt ended badly and another one follows.
        place: where it ran: host and process.
        reason: why it failed.
        took_s: seconds from the start of the attempt.
        records_bytes: of what is finished or merged, size of its records: a copy that was made before it has less.
    """

    at: str
    point: str
    identity: str
    what: What
    place: str = ""
    reason: str = ""
    took_s: float | None = None
    records_bytes: int | None = None


class StudyDirectory:
    """A study on disk, open for writing; a context manager that holds its lock.

    Args:
        path: the folder, made where it is missing.
        declared: the grid.
        points: what follows from it.

    Raises:
        StoreError: it is in use, is no study, or cannot be written.
    """

    def __init__(self, path: Path, declared: StudyConfig, points: Sequence[Point]) -> None:
        self.path, self.points = path, tuple(points)
        self._lock: IO[bytes] | None = None
        try:
            path.mkdir(parents=True, exist_ok=True) if _is_ours(path) else _refuse(path)
        except OSError as error:
            raise StoreError(f"cannot make the folder {path}: {error.strerror}. Use another --out.") from None
        self._lock = lock_folder(path, "study")
        record = StudyRecord(
            schema_version=SCHEMA_VERSION,
            created=_now() if not (path / STUDY).exists() else _read(path).created,
            declared=declared.model_dump(mode="json"),
            points={point.name: point.identity for point in points},
        )
        if not (path / STUDY).exists() or _read(path) != record:
            write_document(path / STUDY, record)
        (path / RUNS).mkdir(exist_ok=True)  # now: a kill, or a copy, before this line finds nothing that is not ours
        _cut_torn_line(path / EVENTS)
        self._last = {event.identity: event for event in read_events(path)}
        self._folders = _folders(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def directory(self, point: Point) -> Path:
        """Return the run directory of a point, which may have been named beside other points than today's."""
        return self.path / RUNS / self._folders.get(point.short, point.name)

    def log(self, point: Point, what: What, *, place: str = "", reason: str = "", took_s: float | None = None) -> None:
        """Append an event; on return it is on the disk.

        Raises:
            StoreError: it cannot be written.
        """
        directory = self.directory(point)
        event = Event(
            at=_now(), point=directory.name, identity=point.identity, what=what, place=place, reason=reason,
            took_s=took_s, records_bytes=_records_bytes(directory) if what in DONE else None,
        )  # fmt: skip
        try:
            append(self.path / EVENTS, line_of(event))
        except OSError as error:
            raise StoreError(
                f"cannot write to {self.path}: {error.strerror}. Every finished window is kept; make room, then give "
                "the same command again."
            ) from None
        self._last[point.identity] = event

    def last(self, point: Point) -> Event | None:
        """Return the last event of a point."""
        return self._last.get(point.identity)

    def settle(self, point: Point) -> bool:
        """Return whether a point is measured; one that was finished when the log was not written gets its line.

        Of a run directory that cannot be read, such as one that was copied while it was written, the windows that are
        whole with all their samples are kept; what it held lies beside it then.
        """
        directory = self.directory(point)
        event = self.last(point)
        said = event is not None and event.what in DONE and event.records_bytes == _records_bytes(directory)
        if said and (directory / SUMMARY).exists():
            return True
        try:
            if not _holds_a_run(directory):
                return False
            with RunDirectory.read(directory):
                measured = is_measured(directory)
        except StoreError as error:
            aside = _aside(directory)
            kept = keep_intact(directory, aside)
            self.log(
                point, "retried", reason=f"{error} What it held lies in {aside.name} now; {kept} windows are kept."
            )
            return False
        if measured:
            self.log(point, "finished", reason="finished before")
        return measured

    def merge(self, other: Path) -> Iterator[Point]:
        """Take over the points that another study has measured and this one has not, one after the other.

        Raises:
            StoreError: the other folder is no study, or cannot be read.
        """
        _read(other)
        folders = _folders(other)
        for point in self.points:
            source, target = other / RUNS / folders.get(point.short, point.name), self.directory(point)
            if self.settle(point) or not (source / SUMMARY).exists() or not is_measured(source):
                continue
            part = unfinished(target)
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source, part, ignore=shutil.ignore_patterns(LOCK))
            if target.exists():
                os.replace(target, _aside(target))
            os.replace(part, target)
            self.log(point, "merged", reason=f"from {other.name}")
            yield point


def read_events(path: Path) -> Iterator[Event]:
    """Iterate the events of a study in the order written; a study may be running meanwhile.

    Raises:
        StoreError: a line is damaged.
    """
    for number, line in enumerate(lines(path / EVENTS), 1):
        yield parse(Event, line, path / EVENTS, number)


def _read(path: Path) -> StudyRecord:
    return read_document(StudyRecord, path / STUDY)[0]


def _is_ours(path: Path) -> bool:
    """Whether it is a study, is not there, or holds no more than a process leaves that was killed at its beginning."""
    begun = {LOCK, unfinished(path / STUDY).name}
    return not path.exists() or (path / STUDY).exists() or all(entry.name in begun for entry in path.iterdir())


def _refuse(path: Path) -> None:
    raise StoreError(f"{path} is not empty, and no study. Use another --out, such as {shell_word(path / 'study')}.")


def _folders(path: Path) -> dict[str, str]:
    """Return short identity → name of every run directory of a study."""
    names = (entry.name for entry in (path / RUNS).iterdir()) if (path / RUNS).is_dir() else ()
    return {name.rpartition("-")[2]: name for name in names if not name.startswith(".")}


def _holds_a_run(directory: Path) -> bool:
    """Whether there is anything of a run: more than the lock, and what a killed process leaves of a manifest."""
    return directory.is_dir() and any(not entry.name.startswith(".") for entry in directory.iterdir())


def _records_bytes(directory: Path) -> int:
    """Return how large the records of a run are; they only grow."""
    return sum(file.stat().st_size for name in (WINDOWS, SAMPLES) if (file := directory / name).exists())


def _aside(directory: Path) -> Path:
    """Return a free path in the study's folder of what was set aside, where no report looks."""
    (directory.parents[1] / ASIDE).mkdir(exist_ok=True)
    number = 1
    while (aside := directory.parents[1] / ASIDE / f"{directory.name}.{number}").exists():
        number += 1
    return aside


def _cut_torn_line(file: Path) -> None:
    """Cut off what a crash left of a line."""
    if not file.exists():
        return
    whole = sum(map(len, lines(file)))
    if file.stat().st_size > whole:
        with file.open("r+b") as stream:
            stream.truncate(whole)
            os.fsync(stream.fileno())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
