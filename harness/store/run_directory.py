"""The run directory: append-only, flushed per window, resumable after a kill at any moment.

A window is written in two steps: first its sample lines, then its own line, each flushed to the disk (``fsync``). **The
window line commits.** Whenever a run dies, the files hold every committed window in full, followed by at most some
sample lines of the next window and at most one torn line; resuming cuts off exactly those and refuses more.

Not promised: writers on a file system without ``flock`` (they are refused, not raced), locking on Windows (there is
none), and protection against editing the files.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from itertools import chain, count, zip_longest
from pathlib import Path
from typing import IO, Self

from harness.appearance.visible_text import shell_word
from harness.errors import OutdatedError, StoreError
from harness.host.files import DocumentError, open_regular, read_bytes, read_json, unfinished
from harness.records import SCHEMA_VERSION, Manifest, SampleRecord, SampleScores, ScoresRecord, WindowRecord
from harness.records.summary import SUMMARY_VERSION, Summary
from harness.store.committed import (
    MANIFEST,
    SAMPLES,
    WINDOWS,
    confirmed,
    read_committed,
    read_manifest,
    sealed_window_lines,
)
from harness.store.record_files import append, lines, new_run, parse, read_document, seal_of, split_seal, write_document
from harness.store.same_run import refuse_other_run

if sys.platform != "win32":
    import fcntl


WindowKey = tuple[str, int, int, str]
"""Identity of a measured window in a run: task, block, repeat, operating point."""

SCORES = "scores.json"
SUMMARY = "summary.json"
LOCK = ".lock"


class RunDirectory:
    """The records of one run; made by :meth:`create`, :meth:`resume` or :meth:`read`; leaving it releases the lock."""

    def __init__(
        self, path: Path, manifest: Manifest, seal: str, lock: IO[bytes] | None = None, *, keep: bool = False
    ) -> None:
        self.path, self.manifest = path, manifest
        self._lock = lock
        self.rescored: ScoresRecord | None = None
        self._scores_seal = ""
        if (path / SCORES).exists():
            self.rescored, self._scores_seal = read_document(ScoresRecord, path / SCORES)  # records may grow meanwhile
        self._committed = read_committed(path, manifest, seal, keep=keep)
        self._finished = {_key(window) for window in self._committed.windows if _counts(window)}
        again = self.rescored
        if again is not None and self._committed.counts.get(again.records) != len(again.samples):
            raise StoreError(
                f"{path / SCORES} is not of the records beside it. Remove it, and compute scores again with "
                f"`harness rescore {shell_word(path)}`."
            )

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> Self:
        """Start a run in a new or empty folder; parents are made."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the run directory {path}: {error.strerror}. Use another --out.") from None
        refuse_occupied(path)  # before the lock: nothing is written into a folder that is not ours
        with ExitStack() as on_error:
            lock = on_error.enter_context(lock_folder(path))
            refuse_occupied(path)
            manifest = manifest.model_copy(update={"run": new_run()})
            store = cls(path, manifest, write_document(path / MANIFEST, manifest), lock)
            on_error.pop_all()
        return store

    @classmethod
    def resume(cls, path: Path, manifest: Manifest, lock: int | None = None) -> Self:
        """Continue a run: cut off what was not committed, keep everything that was."""
        before, seal = read_manifest(path)
        refuse_other_run(path, before, manifest)
        with ExitStack() as on_error:
            held = lock_folder(path) if lock is None else os.fdopen(lock, "ab")
            store = cls(path, before, seal, on_error.enter_context(held))
            try:
                store._roll_back()
            except OSError as error:
                raise StoreError(f"cannot write the run directory {path}: {error.strerror}.") from None
            on_error.pop_all()
        return store

    @classmethod
    def read(cls, path: Path, *, keep: bool = False) -> Self:
        """Open a run directory for reading; a run may be writing it meanwhile."""
        return cls(path, *read_manifest(path), keep=keep)

    def close(self) -> None:
        """Release the lock; closing twice is allowed."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def seal(self) -> str:
        """Hash over everything committed and the scores computed since, 64 hexadecimal digits."""
        return _with_scores(self._committed.seal, self._scores_seal)

    @property
    def next_window(self) -> int:
        """Id that the next committed window must carry."""
        return len(self._committed.windows)

    def finished(self) -> frozenset[WindowKey]:
        """Return (task, block, repeat, operating point) of every committed window that counts."""
        return frozenset(self._finished)

    def attempts(self, key: WindowKey) -> int:
        """Return how often this window was measured and found contaminated."""
        return sum(window.superseded and _key(window) == key for window in self._committed.windows)

    def windows(self) -> Iterator[WindowRecord]:
        """Iterate the committed windows in the order written, those that do not count included."""
        return iter(tuple(self._committed.windows))

    def samples(self) -> Iterator[SampleRecord]:
        """Iterate the committed samples in the order written, those of windows that do not count included."""
        again = () if self.rescored is None else self.rescored.samples
        for sample, scores in zip_longest(self._samples(), again):
            yield sample if scores is None else sample.model_copy(update=dict(scores))

    def _samples(self) -> Iterator[SampleRecord]:
        if self._committed.samples is not None:
            yield from self._committed.samples
            return
        file = self.path / SAMPLES
        count = sum(window.samples for window in self._committed.windows)
        for number, line in zip(range(1, count + 1), lines(file), strict=False):
            yield parse(SampleRecord, line, file, number)

    def read_summary(self) -> Summary | None:
        """Return the summary; ``None`` when the run was not summarised yet."""
        file = self.path / SUMMARY
        if not file.exists():
            return None
        summary, own = read_document(Summary, file, SUMMARY_VERSION)
        if self.seal and not own:
            raise StoreError(f"{file} is not what the harness wrote: it was changed, or is damaged.")
        if self.seal and summary.records != self.seal:
            raise OutdatedError(
                f"{file} is not of the records beside it. Write it again with `harness report {shell_word(self.path)}`."
            )
        return summary

    def commit(self, window: WindowRecord, samples: Sequence[SampleRecord]) -> None:
        """Append one finished window with its samples; on return both are on the disk."""
        self._check(window, samples)
        sample_lines, window_line, seal = sealed_window_lines(window, samples, self.manifest.run, self._committed.seal)
        try:
            self._roll_back()  # the remains of an interrupted commit
            append(self.path / SAMPLES, sample_lines)
            append(self.path / WINDOWS, window_line)
        except OSError as error:
            with suppress(OSError):  # otherwise the next commit or resume cuts it off
                self._roll_back()
            raise StoreError(
                f"cannot write to {self.path}: {error.strerror}. Everything finished before is kept; "
                f"make room, then continue with --resume {shell_word(self.path)}."
            ) from None
        self._committed.samples_end += len(sample_lines)
        self._committed.windows_end += len(window_line)
        self._committed.windows.append(window)
        self._committed.seal = seal
        self._committed.counts[seal] = next(reversed(self._committed.counts.values()), 0) + len(samples)
        if _counts(window):
            self._finished.add(_key(window))

    def write_scores(self, names: Iterable[str], versions: Mapping[str, str], samples: Iterable[SampleScores]) -> None:
        """Let scores stand in place of those of all samples, replaced in one step."""
        record = ScoresRecord(
            schema_version=SCHEMA_VERSION,
            run=self.manifest.run,
            records=self._committed.seal,
            computed=datetime.now(UTC).isoformat(timespec="seconds"),
            names=tuple(names),
            versions=dict(versions),
            samples=tuple(samples),
        )
        self._scores_seal, self.rescored = write_document(self.path / SCORES, record), record

    @property
    def lock(self) -> int | None:
        """Descriptor of the lock, for a process that writes on behalf of this one; ``None`` where there are none."""
        return None if self._lock is None or sys.platform == "win32" else self._lock.fileno()

    def _check(self, window: WindowRecord, samples: Sequence[SampleRecord]) -> None:
        if self._lock is None:
            raise StoreError(f"the run directory {self.path} is open for reading only.")
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
        for name, end in ((WINDOWS, self._committed.windows_end), (SAMPLES, self._committed.samples_end)):
            file = self.path / name
            if file.exists() and file.stat().st_size > end:
                with file.open("r+b") as stream:
                    stream.truncate(end)
                    os.fsync(stream.fileno())


def _key(window: WindowRecord) -> WindowKey:
    return (window.task, window.block, window.repeat, window.operating_point)


def _counts(window: WindowRecord) -> bool:
    """Whether it finishes what it measured."""
    return not (window.warmup or window.idle or window.superseded)


def fresh_directory(name: str) -> Path:
    """Return a path under ``runs/`` named by the time and ``name``, where nothing is yet."""
    path = Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    others = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(one for one in chain([path], others) if not one.exists())


def last_seal(path: Path) -> str:
    """Return a run's :attr:`RunDirectory.seal`, as its last window and its scores bear it; nothing is verified."""
    last = deque(lines(path / WINDOWS), maxlen=1)
    seal = split_seal(last[0])[1] if last else ""
    scores = split_seal(read_bytes(path / SCORES))[1] if (path / SCORES).exists() else ""
    return _with_scores(seal, scores)


def _with_scores(seal: str, scores: str) -> str:
    return seal_of(seal, [scores.encode()]) if scores else seal


def refuse_occupied(path: Path) -> None:
    """Raise unless the folder holds at most the remains of a creation that was killed."""
    if any(entry.name not in {LOCK, unfinished(path / MANIFEST).name} for entry in path.iterdir()):
        raise StoreError(
            f"{path} is not empty. Continue it with `harness run --resume {shell_word(path)}`, or use another --out."
        )


def lock_folder(path: Path, what: str = "run directory") -> IO[bytes]:
    """Return the lock file, locked until it is closed; the kernel releases it when the process dies."""
    with ExitStack() as on_error:
        try:
            if (path / LOCK).exists():
                open_regular(path / LOCK).close()  # a named pipe would wait for a reader
            lock = on_error.enter_context((path / LOCK).open("ab"))
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"the {what} {path} is in use by another process. Stop it or wait for it.") from None
        except OSError as error:
            raise StoreError(f"cannot lock the {what} {path}: {error.strerror}.") from None
        on_error.pop_all()
    return lock


def is_held(path: Path) -> bool | None:
    """Return whether a process holds a folder's lock, and so writes to it; ``None`` where locks cannot be asked for."""
    if sys.platform == "win32":
        return None
    try:
        with open_regular(path / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:  # a copy without it
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return None
    return False


def keep_intact(directory: Path, aside: Path) -> int:
    """Cut a run to the longest beginning that its seals confirm, and return how many windows that are.

    What it held lies in ``aside`` afterwards. A kill at any moment leaves the run as it was, or cut: never less.
    """
    with lock_folder(directory):
        count, ends = _intact(directory)
        if not count:
            os.replace(directory, aside)
            return 0
        part = unfinished(aside)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(directory, part, ignore=shutil.ignore_patterns(LOCK))
        os.replace(part, aside)
        for name, end in ends.items():
            with (directory / name).open("r+b") as stream:
                stream.truncate(end)
                os.fsync(stream.fileno())
        (directory / SCORES).unlink(missing_ok=True)  # of records that may be cut off; they can be computed again
    return count


def is_damaged(directory: Path, error: StoreError) -> bool:
    """Return whether a run was refused for what its files hold, and not for what cannot be read now or by us."""
    cause = error.__context__
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        return False
    try:
        manifest = read_json(directory / MANIFEST)
    except (FileNotFoundError, DocumentError):
        return True
    except OSError:
        return False
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    return not isinstance(version, int) or version == SCHEMA_VERSION


def _intact(directory: Path) -> tuple[int, dict[str, int]]:
    """Return how many windows are whole, and where they end in each file, windows first: bytes."""
    count, ends = 0, {WINDOWS: 0, SAMPLES: 0}
    try:
        manifest, seal = read_manifest(directory)
        for count, each in enumerate(confirmed(directory, manifest, seal), 1):  # noqa: B007
            ends = {WINDOWS: each.windows_end, SAMPLES: each.samples_end}
    except StoreError as error:
        if not is_damaged(directory, error):
            raise
    return count, ends
