"""The directory of a study: what was declared, a folder per step and point, and a log of what became of each.

The log speeds things up and says why something failed; whether a point is measured, or a step made, its folder decides.
Nothing that decides is an absolute path: a study can be moved, and copied while it grows. Loads no torch.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from harness.appearance.visible_text import shell_word
from harness.errors import ConfigError, StoreError, reason
from harness.host.files import sync, unfinished
from harness.records import SCHEMA_VERSION
from harness.records.record import Record
from harness.store.committed import SAMPLES, WINDOWS
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
"""Events after which a point is measured, or a step made."""

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

    ``dry`` leaves what the folder holds of the study as it is; only :data:`PROBES` may be written in it.
    """

    def __init__(self, path: Path, declared: StudyConfig, points: Sequence[Point], *, dry: bool = False) -> None:
        self.path, self.points, self.steps = path, tuple(points), steps_of(declared.step)
        begun = {LOCK, PROBES, unfinished(path / STUDY).name}  # by an estimate, or by a process killed at the start
        try:
            if path.exists() and not (path / STUDY).exists() and any(each.name not in begun for each in path.iterdir()):
                other = shell_word(path / "study")
                raise StoreError(f"{path} is not empty, and no study. Use another --out, such as {other}.")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {path}: {error.strerror}. Use another --out.") from None
        self._lock = lock_folder(path, "study")
        if not dry:
            self._declare(declared)
        self._last = {event.identity: event for event in EventLog(path).read()}
        self._folders = _folders(path)

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
        log = self.path / EVENTS
        if log.exists() and log.stat().st_size > (whole := sum(map(len, lines(log)))):  # a crash tore a line
            with log.open("r+b") as stream:
                stream.truncate(whole)
                os.fsync(stream.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def directory(self, part: Part) -> Path:
        """Return the folder of a point or a step, which may have been named otherwise than today."""
        return self.path / self._folders.get((part.place, part.short), f"{part.place}/{part.folder}")

    def inputs(self, part: Part) -> dict[str, Path]:
        """Return name → folder of the steps that a point or a step names."""
        return {name: self.directory(step) for name, step in part.steps.items()}

    def log(self, part: Part, what: What, *, place: str = "", reason: str = "", took_s: float | None = None) -> None:
        """Append an event; on return it is on the disk."""
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
        """Return whether a point is measured, or a step made, and write nothing; one that is damaged is not."""
        return self._look_into(part)[0]

    def settle(self, part: Part) -> bool:
        """Return whether a point is measured, or a step made; what was finished and not logged gets its line.

        What is damaged, such as a run that was copied while it was written, is set aside; of a run the windows that are
        whole with all their samples are kept.
        """
        done, damage = self._look_into(part)
        if damage and isinstance(part, Step):
            self.log(part, "retried", reason=f"{damage} What it held lies in {self.set_aside(part)} now.")
        elif damage:
            aside = free_aside(self.directory(part))
            kept = keep_intact(self.directory(part), aside)
            said = f"{damage} What it held lies in {aside.name} now; {kept} windows are kept."
            self.log(part, "retried", reason=said)
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
        try:
            return self._is_said(part) or is_measured(directory), ""
        except StoreError as error:
            if not is_damaged(directory, error):
                raise
            return False, str(error)

    def set_aside(self, part: Part) -> str:
        """Move what a point or a step has to where no report looks, so that it begins anew; return where it lies."""
        directory = self.directory(part)
        try:
            aside = free_aside(directory)
            os.replace(directory, aside)
        except OSError as error:
            raise StoreError(f"cannot move {directory}: {error.strerror}. Move or delete it.") from None
        return f"{ASIDE}/{aside.name}"

    def merge(self, other: Path) -> Iterator[tuple[Part, str]]:
        """Take over what another study has and this one has not; yield each part, and why it is left out if it is."""
        _read(other)
        folders = _folders(other)
        parts: tuple[Part, ...] = (*self.steps, *self.points)
        for part in parts:
            source = other / folders.get((part.place, part.short), f"{part.place}/{part.folder}")
            if self.settle(part):
                continue
            try:
                files = _files_of(source, part)
            except (StoreError, OSError) as error:
                yield part, str(error)
                continue
            if files:
                with in_place_of(self.directory(part), f"cannot copy {source}") as folder:
                    copy_files(source, folder, files)
                self.log(part, "merged", reason=f"from {other.name}")
                yield part, ""


def _files_of(source: Path, part: Part) -> list[str]:
    """Return the names of what a finished run, or a step that is made, holds; none of one that is not."""
    if not isinstance(part, Step):
        found = [file.name for file in source.iterdir() if file.is_file()] if is_measured(source) else []
        return [name for name in found if name != LOCK]
    record = read_step(source, part.identity)
    if record is None:
        return []
    if read_step(source, part.identity, verify=True) is None:
        raise StoreError(f"files of {source} were changed since they were made; it is made again here.")
    return [*record.made, *(name for name in (LOG, STEP) if (source / name).exists())]


class EventLog:
    """Reads the log of a study, which may be running meanwhile; each time what was added since the last."""

    def __init__(self, path: Path) -> None:
        self._file = path / EVENTS
        self._line = self._end = 0

    def read(self) -> Iterator[Event]:
        """Iterate the new events in the order written. One that is damaged is passed over with a warning."""
        for line in lines(self._file, self._end):
            self._line, self._end = self._line + 1, self._end + len(line)
            try:
                yield Event.model_validate_json(line)
            except ValidationError:
                said = "%s, line %d is damaged and passed over: run directories decide what is measured"
                logger.warning(said, self._file, self._line)


def is_measured(directory: Path) -> bool:
    """Read a run, if there is one, and return whether its summary is of all that it holds."""
    if not directory.is_dir() or all(entry.name.startswith(".") for entry in directory.iterdir()):
        return False
    with RunDirectory.read(directory) as store:
        try:
            return store.read_summary() is not None
        except ConfigError:
            return False
        except StoreError as error:  # a damaged one is made again of the records
            if not is_damaged(directory, error):
                raise
            return False


@contextmanager
def in_place_of(target: Path, cannot: str) -> Iterator[Path]:
    """Yield a folder to fill, which takes the place of what lies at the target; that is set aside."""
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


def _read(path: Path) -> StudyRecord:
    return read_document(StudyRecord, path / STUDY)[0]


def _folders(path: Path) -> dict[tuple[str, str], str]:
    """Return place and short identity → path below a study's folder of every folder of its points and steps."""
    found: dict[tuple[str, str], str] = {}
    for place in (RUNS, STEPS):
        names = (entry.name for entry in (path / place).iterdir()) if (path / place).is_dir() else ()
        found |= {(place, name.rpartition("-")[2]): f"{place}/{name}" for name in names if not name.startswith(".")}
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
