"""The directory of a study: what was declared, a folder per step and point, and a log of what became of each.

``study.json`` is written once; ``events.jsonl`` is appended to, a line per event, each flushed to the disk (``fsync``);
a torn last line is cut off, a damaged one is passed over. One process at a time writes them, under a lock that dies
with it. The log only speeds things up and says why something failed: whether a point is measured, or a step made,
its folder decides. Nothing that decides is an absolute path, so that the folder can be moved, and copied while it
grows: of a run whose files were copied at different moments, all windows that are whole are kept
(:mod:`harness.store.run_directory`). Loads no torch: a look at a study (:mod:`harness.study.status`)
takes little from the machine that measures it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, Self

from pydantic import Field, ValidationError

from harness.appearance.visible_text import shell_word
from harness.errors import ConfigError, StoreError, reason
from harness.host.files import sync, unfinished
from harness.records import SCHEMA_VERSION
from harness.records.record import Record
from harness.store.committed import SAMPLES, WINDOWS
from harness.store.packed_run import unpack_folder
from harness.store.record_files import append, line_of, lines, read_document, write_document
from harness.store.run_directory import LOCK, SUMMARY, RunDirectory, is_damaged, keep_intact, lock_folder
from harness.study.grid import Part, Point, StudyConfig
from harness.study.step_run import ASIDE, LOG, STEP, copy_files, free_aside, read_step
from harness.study.steps import Step, steps_of

logger = logging.getLogger(__name__)

STUDY, EVENTS, RUNS, STEPS = "study.json", "events.jsonl", "runs", "steps"
PROBES = "probes"
"""Folder of the small runs that an estimate is made from."""

DONE = ("finished", "merged")
"""The file that marks a point as measured, or a step as made."""

What = Literal["started", "finished", "failed", "retried", "merged"]


class StudyRecord(Record):
    """The inputs of a study.

    Attributes:
        schema_version: of the files of a study.
        created: UTC time, ISO 8601.
        declared: the grid, its preset laid under it; the last one that was given.
        points: name → identity of every point of the grid.
        steps: name → identity of every step.
    """

    schema_version: int
    created: str
    declared: dict[str, Any]
    points: dict[str, str]
    steps: dict[str, str] = Field(default={})


class Event(Record):
    """Something that became of a point or a step.

    Attributes:
        at: UTC time, ISO 8601.
        point: name of its run directory, or ``step NAME``.
        identity: hash over its settings, or of the step.
        what: happened; ``retried`` says that an attempt ended badly and another one follows.
        place: where it ran: host and process.
        reason: why it failed.
        took_s: seconds from the start of the attempt.
        records_bytes: of a point that is finished or merged, size of its records: a copy that was made before it has
            less.
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
        dry: leave what the folder holds of the study as it is; only :data:`PROBES` may be written in it.

    Raises:
        StoreError: it is in use, is no study, or cannot be written.
    """

    def __init__(self, path: Path, declared: StudyConfig, points: Sequence[Point], *, dry: bool = False) -> None:
        self.path, self.points, self.steps = path, tuple(points), steps_of(declared.step)
        self._lock: IO[bytes] | None = None
        try:
            path.mkdir(parents=True, exist_ok=True) if _is_ours(path) else _refuse(path)
        except OSError as error:
            raise StoreError(f"cannot make the folder {path}: {error.strerror}. Use another --out.") from None
        self._lock = lock_folder(path, "study")
        if not dry:
            self._declare(declared)
        self._last = {event.identity: event for event in read_events(path)}
        self._folders = {place: _folders(path / place) for place in (RUNS, STEPS)}

    def _declare(self, declared: StudyConfig) -> None:
        """Say what the study is made of, and make its files ready to be added to."""
        before = _read(self.path) if (self.path / STUDY).exists() else None
        record = StudyRecord(
            schema_version=SCHEMA_VERSION,
            created=_now() if before is None else before.created,
            declared=declared.model_dump(mode="json"),
            points={point.name: point.identity for point in self.points},
            steps={step.name: step.identity for step in self.steps},
        )
        if before != record:
            write_document(self.path / STUDY, record)
        (self.path / RUNS).mkdir(exist_ok=True)  # now: a kill, or a copy, before this finds nothing that is not ours
        if self.steps:
            (self.path / STEPS).mkdir(exist_ok=True)
        sync(self.path)
        _cut_torn_line(self.path / EVENTS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def directory(self, part: Part) -> Path:
        """Return the folder of a point or a step, which may have been named otherwise than today."""
        place, name = (STEPS, part.folder) if isinstance(part, Step) else (RUNS, part.name)
        return self.path / place / self._folders[place].get(part.short, name)

    def inputs(self, part: Part) -> dict[str, Path]:
        """Return name → folder of the steps that a point or a step names."""
        return {name: self.directory(step) for name, step in part.steps.items()}

    def log(self, part: Part, what: What, *, place: str = "", reason: str = "", took_s: float | None = None) -> None:
        """Append an event; on return it is on the disk.

        Raises:
            StoreError: it cannot be written.
        """
        directory = self.directory(part)
        is_step = isinstance(part, Step)
        event = Event(
            at=_now(), point=part.title if is_step else directory.name, identity=part.identity, what=what, place=place,
            reason=reason, took_s=took_s,
            records_bytes=_records_bytes(directory) if what in DONE and not is_step else None,
        )  # fmt: skip
        try:
            append(self.path / EVENTS, line_of(event))
        except OSError as error:
            raise StoreError(
                f"cannot write to {self.path}: {error.strerror}. Every finished window is kept; make room, then give "
                "the same command again."
            ) from None
        self._last[part.identity] = event

    def last(self, part: Part) -> Event | None:
        """Return the last event of a point or a step."""
        return self._last.get(part.identity)

    def is_done(self, part: Part) -> bool:
        """Return whether a point is measured, or a step made, and write nothing; one that is damaged is not.

        Raises:
            StoreError: its folder cannot be read now, or by this version.
        """
        return self._look_into(part)[0]

    def settle(self, part: Part) -> bool:
        """Return whether a point is measured, or a step made; what was finished and not logged gets its line.

        Of a run directory that is damaged, such as one that was copied while it was written, the windows that are
        whole with all their samples are kept; of a step none. What it held lies beside it then.

        Raises:
            StoreError: its folder cannot be read now, or by this version; it is left as it is.
        """
        done, damage = self._look_into(part)
        if damage and isinstance(part, Step):
            self.log(part, "retried", reason=f"{damage} What it held lies in {self.set_aside(part)} now.")
        elif damage:
            aside = free_aside(self.directory(part))
            kept = keep_intact(self.directory(part), aside)
            self.log(
                part, "retried", reason=f"{damage} What it held lies in {aside.name} now; {kept} windows are kept."
            )
        elif done and not self._is_said(part):
            self.log(part, "finished", reason="finished before")
        return done

    def _is_said(self, part: Part) -> bool:
        """Whether the log says that a part is done; of a point, in files of today's size."""
        directory, event = self.directory(part), self.last(part)
        if event is None or event.what not in DONE or isinstance(part, Step):
            return event is not None and event.what in DONE
        return event.records_bytes == _records_bytes(directory) and (directory / SUMMARY).exists()

    def _look_into(self, part: Part) -> tuple[bool, str]:
        """Return whether a part is done, and what is damaged in its folder."""
        directory = self.directory(part)
        if isinstance(part, Step):
            done = read_step(directory, part.identity, verify=not self._is_said(part)) is not None
            is_damaged_step = not done and os.path.lexists(directory / STEP)
            return done, "Files of it are missing or damaged." if is_damaged_step else ""
        if self._is_said(part):
            return True, ""
        try:
            begun = directory.is_dir() and any(not entry.name.startswith(".") for entry in directory.iterdir())
            return begun and is_finished(directory), ""
        except StoreError as error:
            if not is_damaged(directory, error):
                raise
            return False, str(error)

    def set_aside(self, part: Part) -> str:
        """Move what a point or a step has to where no report looks, so that it begins anew; return where it lies.

        Raises:
            StoreError: it cannot be moved.
        """
        directory = self.directory(part)
        try:
            aside = free_aside(directory)
            os.replace(directory, aside)
        except OSError as error:
            raise StoreError(f"cannot move {directory}: {error.strerror}. Move or delete it.") from None
        return f"{ASIDE}/{aside.name}"

    def merge(self, other: Path) -> Iterator[tuple[Part, str]]:
        """Take over what another study has made and measured and this one has not, one after the other.

        Yields:
            Each with why it is left out: its run there cannot be read. Empty where it was taken over.

        Raises:
            StoreError: the other folder is no study, or this one cannot be read or written.
        """
        _read(other)
        folders = {place: _folders(other / place) for place in (RUNS, STEPS)}
        parts: tuple[Part, ...] = (*self.steps, *self.points)
        for part in parts:
            if self.settle(part):
                continue
            place, name = (STEPS, part.folder) if isinstance(part, Step) else (RUNS, part.name)
            source = other / place / folders[place].get(part.short, name)
            try:
                files = _step_files(source, part) if isinstance(part, Step) else _run_files(source)
            except (StoreError, OSError) as error:
                yield part, str(error)
                continue
            if files:
                take_over(source, self.directory(part), files)
                self.log(part, "merged", reason=f"from {other.name}")
                yield part, ""


def _run_files(source: Path) -> list[str]:
    """Return the names of what a finished run holds; none of one that is not finished."""
    found = [file.name for file in source.iterdir() if file.is_file()] if is_measured(source) else []
    return [name for name in found if name != LOCK]


def _step_files(source: Path, step: Step) -> list[str]:
    """Return the paths of what a step holds that is made; none of one that is not.

    Raises:
        StoreError: its files were changed.
    """
    record = read_step(source, step.identity)
    if record is None:
        return []
    if read_step(source, step.identity, verify=True) is None:
        raise StoreError(f"files of {source} were changed since they were made; it is made again here.")
    return [*record.made, *(name for name in (LOG, STEP) if (source / name).exists())]


class EventLog:
    """Reads the log of a study, which may be running meanwhile; each time what was added since the last.

    Args:
        path: folder of the study.
    """

    def __init__(self, path: Path) -> None:
        self._file = path / EVENTS
        self._line = self._end = 0

    def read(self) -> Iterator[Event]:
        """Iterate the new events in the order written. One that is damaged is passed over with a warning.

        Raises:
            StoreError: the log cannot be read.
        """
        for line in lines(self._file, self._end):
            self._line, self._end = self._line + 1, self._end + len(line)
            try:
                yield Event.model_validate_json(line)
            except ValidationError:
                logger.warning(
                    "%s, line %d is damaged and passed over: run directories decide what is measured",
                    self._file,
                    self._line,
                )


def is_measured(directory: Path) -> bool:
    """Whether a run is finished; reads it only where it may be.

    Raises:
        StoreError: as :func:`is_finished`.
    """
    return (directory / SUMMARY).exists() and is_finished(directory)


def is_finished(directory: Path) -> bool:
    """Read a run, and return whether its summary is of all that it holds. A damaged one is made again of the records.

    Raises:
        StoreError: the run is damaged, or cannot be read.
    """
    with RunDirectory.read(directory) as store:
        try:
            return store.read_summary() is not None
        except ConfigError:
            return False
        except StoreError as error:
            if not is_damaged(directory, error):
                raise
            return False


def take_over(source: Path, target: Path, files: Iterable[str]) -> None:
    """Copy files of what is finished; on return they are on the disk, and what stood in their place lies aside.

    Args:
        source: the folder of a run or a step.
        target: where it comes to lie.
        files: paths below it.

    Raises:
        StoreError: it cannot be copied.
    """
    with _put_in_place(target, f"cannot copy {source}") as part:
        copy_files(source, part, files)


def take_in(archive: bytes, target: Path) -> None:
    """Unpack what a machine of a cluster has finished (:func:`~harness.store.packed_run.pack_folder`), likewise.

    Raises:
        StoreError: it cannot be written.
        tarfile.TarError: it is no such archive, or a name leads out of the folder.
    """
    with _put_in_place(target, f"cannot write {target}") as part:
        unpack_folder(archive, part)


@contextmanager
def _put_in_place(target: Path, cannot: str) -> Iterator[Path]:
    """Yield a folder to fill, which takes the place of what lies at the target."""
    part = unfinished(target)
    try:
        shutil.rmtree(part, ignore_errors=True)
        yield part
        if target.exists():
            os.replace(target, free_aside(target))
        os.replace(part, target)
        sync(target.parent)
    except OSError as error:
        said = f"{cannot}: {reason(error)}. What was there before is kept; the same command goes on."
        raise StoreError(said) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _records_bytes(directory: Path) -> int:
    """Return how large the records of a run are; they only grow."""
    return sum(file.stat().st_size for name in (WINDOWS, SAMPLES) if (file := directory / name).exists())


def read_events(path: Path) -> Iterator[Event]:
    """Iterate all events of a study, as :meth:`EventLog.read` does."""
    return EventLog(path).read()


def _read(path: Path) -> StudyRecord:
    return read_document(StudyRecord, path / STUDY)[0]


def _is_ours(path: Path) -> bool:
    """Whether it is a study, is not there, or holds only what an estimate leaves, or a process killed at the start."""
    begun = {LOCK, PROBES, unfinished(path / STUDY).name}
    return not path.exists() or (path / STUDY).exists() or all(entry.name in begun for entry in path.iterdir())


def _refuse(path: Path) -> None:
    raise StoreError(f"{path} is not empty, and no study. Use another --out, such as {shell_word(path / 'study')}.")


def _folders(place: Path) -> dict[str, str]:
    """Return short identity → name of every folder of a study's points, or of its steps."""
    names = (entry.name for entry in place.iterdir()) if place.is_dir() else ()
    return {name.rpartition("-")[2]: name for name in names if not name.startswith(".")}


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
