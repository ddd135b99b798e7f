"""The run directory: append-only, flushed per window, resumable after a kill at any moment.

``manifest.json`` is written once, before the first sample. A window is written in two steps: first its
sample lines, then its own line, each step flushed to the disk (``fsync``). **The window line commits.**
Whenever a run dies, the files hold every committed window in full, followed by at most
some sample lines that no window commits and at most one torn line; resuming cuts off exactly those.

Not promised: writers on a file system without ``flock`` (they are refused, not raced), locking on
Windows (there is none), and protection against editing the files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Self

from harness.errors import StoreError
from harness.host.atomic_files import unfinished
from harness.records import Manifest, SampleRecord, WindowRecord
from harness.records.summary import SUMMARY_VERSION, Summary
from harness.store.record_files import (
    ACCESS,
    REMEDY,
    append,
    line_of,
    lines,
    parse,
    read_document,
    write_document,
)
from harness.store.same_run import refuse_other_run

if sys.platform != "win32":
    import fcntl

__all__ = ["LOCK", "MANIFEST", "SAMPLES", "SUMMARY", "WINDOWS", "RunDirectory", "WindowKey"]

WindowKey = tuple[str, int, int, str]
"""What identifies a measured window in a run: task, block, repeat, operating point."""

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"
WINDOWS = "windows.jsonl"
SUMMARY = "summary.json"
LOCK = ".lock"


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
            write_document(path / MANIFEST, manifest)
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

        Warm-up and idle windows are omitted, and those that were measured again.
        """
        return frozenset(self._finished)

    def attempts(self, key: WindowKey) -> int:
        """Return how often this window was measured and found contaminated."""
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
        for number, line in zip(range(1, count + 1), lines(file), strict=False):
            yield parse(SampleRecord, line, file, number)

    def read_summary(self) -> Summary | None:
        """Return the summary; ``None`` when the run was not summarised yet.

        Raises:
            StoreError: the file is damaged or of another schema version.
        """
        file = self.path / SUMMARY
        return read_document(Summary, file, SUMMARY_VERSION) if file.exists() else None

    # ------------------------------------------------------------------------------- writing

    def commit(self, window: WindowRecord, samples: Sequence[SampleRecord]) -> None:
        """Append one finished window with its samples; on return both are on the disk.

        Raises:
            StoreError: the records contradict each other or the run, the directory was opened for
                reading, or the disk is full. The directory then holds what it held before.
        """
        self._check(window, samples)
        sample_lines, window_line = b"".join(map(line_of, samples)), line_of(window)
        try:
            self._roll_back()  # the remains of an interrupted commit
            append(self.path / SAMPLES, sample_lines)
            append(self.path / WINDOWS, window_line)
        except OSError as error:
            with suppress(OSError):  # otherwise the next commit or resume cuts it off
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


def _committed_windows(file: Path) -> tuple[list[WindowRecord], int]:
    """Return the windows and the offset behind the last one."""
    windows: list[WindowRecord] = []
    end = 0
    for number, line in enumerate(lines(file), 1):
        window = parse(WindowRecord, line, file, number)
        if window.window != len(windows):
            raise StoreError(
                f"{file}, line {number} is window {window.window} where {len(windows)} should follow. {REMEDY}"
            )
        windows.append(window)
        end += len(line)
    return windows, end


def _committed_samples_end(file: Path, windows: Sequence[WindowRecord]) -> int:
    """Return the offset behind the last sample that a window commits, having read them all."""
    expected = sum(window.samples for window in windows)
    owners = (window.window for window in windows for _ in range(window.samples))  # as many as a file may claim
    end = found = 0
    for number, (owner, line) in enumerate(zip(owners, lines(file), strict=False), 1):
        sample = parse(SampleRecord, line, file, number)
        if sample.window != owner:
            raise StoreError(
                f"{file}, line {number} belongs to window {sample.window} where {owner} was committed. {REMEDY}"
            )
        end += len(line)
        found = number
    if found < expected:
        raise StoreError(f"{file} is damaged: {found} whole lines where {WINDOWS} commits {expected}. {REMEDY}")
    return end


def _refuse_occupied(path: Path) -> None:
    """Raise unless the folder holds at most the remains of a creation that was killed."""
    if any(entry.name not in {LOCK, unfinished(path / MANIFEST).name} for entry in path.iterdir()):
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
        file.stat()
    except FileNotFoundError:
        if not path.is_dir():
            raise StoreError(f"{path} does not exist. Start a run with --out {path}.") from None
        below = next((file.parent for file in sorted(path.glob(f"*/{MANIFEST}"))), None)
        instead = "the folder that `harness run` made" if below is None else f"one such as {below}"
        raise StoreError(f"{path} holds no manifest.json: it is not a run directory. Give {instead}.") from None
    except NotADirectoryError:
        raise StoreError(f"{path} is a file, not a run directory. Give the folder that `harness run` made.") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}. {ACCESS}") from None
    return read_document(Manifest, file)
