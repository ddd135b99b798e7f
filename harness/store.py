"""The run directory: append-only, flushed per window, resumable after a kill at any moment.

``manifest.json`` is written once, before the first sample. A window is written in two steps: first its
sample lines, then its own line, each step flushed to the disk (``fsync``). **The window line commits.**
So whatever moment a run dies at, the files hold every committed window in full, and behind it at most
some sample lines that no window commits and at most one torn line; resuming cuts off exactly those.

Not promised: writers on a file system without ``flock`` (they are refused, not raced), locking on
Windows (there is none), and protection against somebody who edits the files.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Self, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import StoreError
from harness.records import SCHEMA_VERSION, Manifest, SampleRecord, WindowRecord
from harness.same_run import refuse_other_run
from harness.summary import Summary

if sys.platform != "win32":
    import fcntl

__all__ = ["LOCK", "MANIFEST", "RunDirectory", "WindowKey"]

R = TypeVar("R", bound=BaseModel)

WindowKey = tuple[str, int, int, str]
"""What identifies a measured window in a run: task, block, repeat, operating point."""

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"
WINDOWS = "windows.jsonl"
SUMMARY = "summary.json"
LOCK = ".lock"
TEMPORARY = ".tmp"


class RunDirectory:
    """The records of one run; made by :meth:`create`, :meth:`resume` or :meth:`read`.

    A context manager; leaving it releases the lock. Iterators show committed records only, as of the
    last commit of this object (or of its opening, when it was opened for reading).

    Attributes:
        path: the folder.
        manifest: as written when the run was created.
    """

    def __init__(self, path: Path, manifest: Manifest, lock: IO[bytes] | None) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._windows, self._windows_end = _committed_windows(path / WINDOWS)
        self._samples_end = _committed_samples_end(path / SAMPLES, self._windows)
        self._finished = {_key(window) for window in self._windows if _counts(window)}

    # ------------------------------------------------------------------------------- opening

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> Self:
        """Start a run in a new or empty folder; parents are made.

        Raises:
            StoreError: the folder holds something, is in use, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the run directory {path}: {error.strerror}. Use another --out.") from None
        _refuse_occupied(path)  # before the lock: nothing is written into a folder that is not ours
        with ExitStack() as on_error:
            lock = on_error.enter_context(_lock(path))
            _refuse_occupied(path)
            _write_atomically(path / MANIFEST, manifest)
            run = cls(path, manifest, lock)
            on_error.pop_all()
        return run

    @classmethod
    def resume(cls, path: Path, manifest: Manifest) -> Self:
        """Continue a run: cut off what was not committed, keep everything that was.

        Args:
            path: the run directory.
            manifest: what would be written if the run were new. Its configuration, operating points,
                model, tasks, meter and machine must be those of the run.

        Raises:
            StoreError: the directory is missing, damaged, foreign or in use, or the run is another one
                (names the first difference with both values).
        """
        before = _read_manifest(path)
        refuse_other_run(path, before, manifest)
        with ExitStack() as on_error:
            run = cls(path, before, on_error.enter_context(_lock(path)))
            try:
                run._roll_back()
            except OSError as error:
                raise StoreError(f"cannot write the run directory {path}: {error.strerror}.") from None
            on_error.pop_all()
        return run

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open a run directory for reading; a run may be writing it meanwhile.

        Raises:
            StoreError: the directory is missing, damaged or foreign.
        """
        return cls(path, _read_manifest(path), None)

    def close(self) -> None:
        """Release the lock; closing twice is allowed."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------- reading

    @property
    def next_window(self) -> int:
        """Id that the next committed window must carry."""
        return len(self._windows)

    def finished(self) -> frozenset[WindowKey]:
        """Return (task, block, repeat, operating point) of every committed window that counts.

        Warm-up and idle windows are left out, and those that were to be measured again.
        """
        return frozenset(self._finished)

    def attempts(self, key: WindowKey) -> int:
        """Return how often this was measured and found contaminated."""
        return sum(window.superseded and _key(window) == key for window in self._windows)

    def windows(self) -> Iterator[WindowRecord]:
        """Iterate the committed windows in the order written, those that do not count included."""
        return iter(tuple(self._windows))

    def samples(self) -> Iterator[SampleRecord]:
        """Iterate the committed samples in the order written, those of windows that do not count included.

        Raises:
            StoreError: a line is damaged.
        """
        file = self.path / SAMPLES
        count = sum(window.samples for window in self._windows)
        for number, line in zip(range(1, count + 1), _lines(file), strict=False):
            yield _parse(SampleRecord, line, file, number)

    def read_summary(self) -> Summary | None:
        """Return the summary; ``None`` when the run was not summarised yet.

        Raises:
            StoreError: the file is damaged or of another schema version.
        """
        file = self.path / SUMMARY
        return _read_document(Summary, file) if file.exists() else None

    # ------------------------------------------------------------------------------- writing

    def commit(self, window: WindowRecord, samples: Sequence[SampleRecord]) -> None:
        """Append one finished window with its samples; on return both are on the disk.

        Raises:
            StoreError: the records contradict each other or the run, the directory was opened for
                reading, or the disk is full. The directory then holds what it held before.
        """
        self._check(window, samples)
        sample_lines, window_line = b"".join(map(_line, samples)), _line(window)
        try:
            self._roll_back()  # what an interrupted commit may have left
            _append(self.path / SAMPLES, sample_lines)
            _append(self.path / WINDOWS, window_line)
        except OSError as error:
            with suppress(OSError):  # what cannot be cut off now is cut off by the next commit, or on resume
                self._roll_back()
            raise StoreError(
                f"cannot write to {self.path}: {error.strerror}. Everything finished before is kept; "
                f"make room, then continue with --resume {self.path}."
            ) from None
        self._samples_end += len(sample_lines)
        self._windows_end += len(window_line)
        self._windows.append(window)
        if _counts(window):
            self._finished.add(_key(window))

    def write_summary(self, summary: Summary) -> None:
        """Write or replace ``summary.json`` in one step.

        Raises:
            StoreError: the directory was opened for reading, or the file cannot be written.
        """
        self._check_writable()
        _write_atomically(self.path / SUMMARY, summary)

    def _check_writable(self) -> None:
        if self._lock is None:
            raise StoreError(f"the run directory {self.path} is open for reading only.")

    def _check(self, window: WindowRecord, samples: Sequence[SampleRecord]) -> None:
        self._check_writable()
        failed = sum(sample.error is not None for sample in samples)
        origin = (window.window, window.task, window.repeat, window.operating_point)
        problem = ""
        if window.window != self.next_window:
            problem = f"has number {window.window} where {self.next_window} is next"
        elif (window.samples, window.failed) != (len(samples), failed):
            problem = f"announces {window.samples} samples, {window.failed} failed, and has {len(samples)}, {failed}"
        elif any((each.window, each.task, each.repeat, each.operating_point) != origin for each in samples):
            problem = "is given samples of another window"
        elif not (window.warmup or window.idle) and _key(window) in self._finished:
            problem = f"repeats {_key(window)}, which is finished"
        if problem:
            raise StoreError(f"the window to be written to {self.path} {problem}.")

    def _roll_back(self) -> None:
        """Cut both files to what is committed; windows first, so that no window ever lacks its samples."""
        for name, end in ((WINDOWS, self._windows_end), (SAMPLES, self._samples_end)):
            file = self.path / name
            if file.exists() and file.stat().st_size > end:
                with file.open("r+b") as stream:
                    stream.truncate(end)
                    os.fsync(stream.fileno())


# --------------------------------------------------------------------------------- records on disk


def _key(window: WindowRecord) -> WindowKey:
    return (window.task, window.block, window.repeat, window.operating_point)


def _counts(window: WindowRecord) -> bool:
    """Whether it finishes what it measured."""
    return not (window.warmup or window.idle or window.superseded)


def _line(record: BaseModel) -> bytes:
    try:
        return record.model_dump_json().encode() + b"\n"
    except ValueError as error:  # half of a surrogate pair in a text
        raise StoreError(f"a {type(record).__name__} cannot be written as JSON: {error}.") from None


def _lines(file: Path) -> Iterator[bytes]:
    """Iterate the whole lines of a file, each with its newline; a torn last line is left out."""
    try:
        with file.open("rb") as stream:
            yield from (line for line in stream if line.endswith(b"\n"))
    except FileNotFoundError:  # nothing was committed yet
        return
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}.") from None


def _parse(kind: type[R], data: bytes, file: Path, line: int | None = None) -> R:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = str(file) if line is None else f"{file}, line {line}"
        field = "".join(f"{part}: " for part in first["loc"])
        raise StoreError(f"{place} is damaged: {field}{first['msg']}.") from None


def _committed_windows(file: Path) -> tuple[list[WindowRecord], int]:
    """Return the windows and the offset behind the last one."""
    windows: list[WindowRecord] = []
    end = 0
    for number, line in enumerate(_lines(file), 1):
        window = _parse(WindowRecord, line, file, number)
        if window.window != len(windows):
            raise StoreError(f"{file}, line {number} is window {window.window} where {len(windows)} should follow.")
        windows.append(window)
        end += len(line)
    return windows, end


def _committed_samples_end(file: Path, windows: Sequence[WindowRecord]) -> int:
    """Return the offset behind the last sample that a window commits, having read them all."""
    owners = [window.window for window in windows for _ in range(window.samples)]
    end = found = 0
    for number, (owner, line) in enumerate(zip(owners, _lines(file), strict=False), 1):
        sample = _parse(SampleRecord, line, file, number)
        if sample.window != owner:
            raise StoreError(f"{file}, line {number} belongs to window {sample.window} where {owner} was committed.")
        end += len(line)
        found = number
    if found < len(owners):
        raise StoreError(f"{file} is damaged: {found} whole lines where {WINDOWS} commits {len(owners)}.")
    return end


def _append(file: Path, data: bytes) -> None:
    """Append and force to the disk. Unbuffered: a buffer would write its rest later, behind a roll-back."""
    is_new = not file.exists()
    with file.open("ab", buffering=0) as stream:
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]
        os.fsync(stream.fileno())
    if is_new:
        _sync_folder(file.parent)


def _write_atomically(file: Path, record: BaseModel) -> None:
    """Write a document so that a reader, and a kill, find the old one or the new one and nothing between."""
    temporary = file.with_name(file.name + TEMPORARY)
    try:
        with temporary.open("wb") as stream:
            stream.write(record.model_dump_json(indent=2).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        _sync_folder(file.parent)
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}.") from None


def _sync_folder(folder: Path) -> None:
    if sys.platform != "win32":  # where folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refuse_occupied(path: Path) -> None:
    """Raise unless the folder holds at most what a kill while creating leaves: nothing to lose."""
    if any(entry.name not in {LOCK, MANIFEST + TEMPORARY} for entry in path.iterdir()):
        raise StoreError(
            f"the folder {path} is not empty. Continue its run with --resume {path}, or use another --out."
        )


def _lock(path: Path) -> IO[bytes]:
    """Return the lock file, locked until it is closed; the kernel releases it when the process dies."""
    with ExitStack() as on_error:
        try:
            lock = on_error.enter_context((path / LOCK).open("ab"))
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"the run directory {path} is in use by another process. Stop it or wait for it."
            ) from None
        except OSError as error:
            raise StoreError(f"cannot lock the run directory {path}: {error.strerror}.") from None
        on_error.pop_all()
    return lock


# ------------------------------------------------------------------------------------ documents


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        there = file.exists()
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}.") from None
    if not there:
        what = "holds no manifest.json: it is no run directory" if path.is_dir() else "does not exist"
        raise StoreError(f"{path} {what}. Start a run with --out {path}.")
    return _read_document(Manifest, file)


def _read_document(kind: type[R], file: Path) -> R:
    """Read a JSON document, its schema version first: another version need not fit the model."""
    try:
        data = file.read_bytes()
        content = json.loads(data)
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}.") from None
    except ValueError as error:
        raise StoreError(f"{file} is damaged: not JSON ({error}).") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version is None:
        raise StoreError(f"{file} is foreign: it has no schema_version.")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{file} has schema version {version!r} and this harness reads {SCHEMA_VERSION}. "
            "Use the version of early-exit-harness that wrote it."
        )
    return _parse(kind, data, file)
