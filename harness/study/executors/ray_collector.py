"""Collects records of points, and folders of steps, beside a study's driver: the other end of :mod:`.ray_worker`.

It holds the lock of each run directory that it writes, until the attempt is over. So nobody else writes one meanwhile,
and what a process sends whose attempt the driver has given up comes to nothing. It never makes a file shorter than
what is committed in it. A step arrives beside its folder, and takes its place when it is whole. Imports no Ray.

Folders of steps on their way between the study and a node, in pieces.

What a node reads it gets once, by whatever process came first, into a folder of its temporary one that is named by the
content: points that follow one another, and a point that goes on after its process was lost, find it where it was. One
process of a node brings a folder, and the others wait for it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.errors import StoreError
from harness.host.files import replace_files, unfinished
from harness.store.committed import MANIFEST, SAMPLES, WINDOWS
from harness.store.record_files import append
from harness.store.run_directory import LOCK, lock_folder, refuse_occupied
from harness.study.step_folder import STEP, StepRecord, is_below, lock_of, put_in_place, read_step, wait_for_lock

GROWING = (SAMPLES, WINDOWS)
"""Files that are appended to, in the order in which a window goes into them."""
PIECE = 16 << 20
"""Bytes of a file that cross at a time."""

Windows = tuple[int, int]
"""Finished and expected."""
Told = tuple[int, str, str, Windows | None]
"""Attempt, its host and process, what it is doing, how far it is."""


@dataclass
class _Held:
    """Files that an attempt writes; there is no lock before there is a folder, and a target for a step alone."""

    folder: Path
    lock: IO[bytes] | None
    target: Path | None = None


class NotArrivedError(StoreError):
    """Files of a step that are not all there, though all were sent."""


class Collector:
    """Writes what nodes send into the study's folder; one for all points, on the driver's machine.

    An attempt is one try at one point. Its number is never used again.
    """

    def __init__(self) -> None:
        self._told: list[Told] = []
        self._held: dict[int, _Held] = {}
        self._over: set[int] = set()

    def begin(self, attempt: int, directory: str) -> dict[str, bytes]:
        """Lock a run directory for an attempt, and return what it holds of records.

        Raises:
            StoreError: another process or attempt writes it, or this attempt is over.
        """
        if attempt in self._over:
            raise _over(attempt)
        if attempt not in self._held:
            folder = Path(directory)
            self._held[attempt] = _Held(folder, lock_folder(folder) if folder.is_dir() else None)
        files = [self._held[attempt].folder / name for name in (MANIFEST, *GROWING)]
        return {file.name: file.read_bytes() for file in files if file.exists()}

    def grow(self, attempt: int, name: str, offset: int, data: bytes) -> None:
        """Bring a file of records to what an attempt has of it.

        Args:
            attempt: whose.
            name: of the file.
            offset: bytes before it were sent before.
            data: all that the attempt has behind it; only what nobody committed can stand behind that here.

        Raises:
            StoreError: the attempt is over, or other records stand there; they are left alone.
            OSError: it cannot be written.
        """
        file = self._folder(attempt) / name
        there = _behind(file, offset)
        if there is None or not (there.startswith(data) or data.startswith(there)):
            raise StoreError(f"{file} holds other records than those that were sent before. It is left as it is.")
        if len(there) > len(data):
            _cut(file, offset + len(data))
        elif len(there) < len(data):
            append(file, data[len(there) :])

    def put(self, attempt: int, name: str, data: bytes) -> None:
        """Write or replace a whole file of a run.

        Raises:
            StoreError: the attempt is over, or another process writes the run, or has made one there meanwhile.
            OSError: it cannot be written.
        """
        replace_files({self._folder(attempt) / name: data}, durable=True)

    def begin_step(self, attempt: int, directory: str) -> None:
        """Lock the place beside a step's folder where an attempt's files arrive, and empty it.

        Raises:
            StoreError: another process or attempt writes there, or this attempt is over.
        """
        if attempt in self._over:
            raise _over(attempt)
        target = Path(directory)
        arriving = unfinished(target)
        arriving.mkdir(parents=True, exist_ok=True)
        self._held[attempt] = _Held(arriving, lock_folder(arriving, "step"), target)
        for entry in arriving.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()

    def add(self, attempt: int, name: str, data: bytes) -> None:
        """Append a piece to a file of a step.

        Raises:
            StoreError: the attempt is over, or the name is none of a file below the folder.
            OSError: it cannot be written.
        """
        file = _below(self._folder(attempt), name)
        file.parent.mkdir(parents=True, exist_ok=True)
        append(file, data)

    def finish_step(self, attempt: int, record: bytes) -> None:
        """Let the files that arrived be the folder of the step.

        Args:
            attempt: whose.
            record: its ``step.json``.

        Raises:
            NotArrivedError: not all of them are there.
            StoreError: the attempt is over.
            OSError: it cannot be written.
        """
        replace_files({self._folder(attempt) / STEP: record}, durable=True)
        held = self._held[attempt]
        if held.target is None or read_step(held.folder) is None:
            raise NotArrivedError(
                f"not all files of the step arrived in {held.folder}. Look whether something else writes there."
            )
        (held.folder / LOCK).unlink()
        put_in_place(held.folder, held.target)

    def step(self, attempt: int, directory: str) -> bytes:
        """Return the ``step.json`` of a folder here.

        Raises:
            OSError: it cannot be read.
        """
        return (Path(directory) / STEP).read_bytes()

    def piece(self, attempt: int, directory: str, name: str, offset: int) -> bytes:
        """Return what a file of a step's folder here holds from an offset on, :data:`PIECE` bytes at most.

        Raises:
            StoreError: the name is none of a file below the folder.
            OSError: it cannot be read.
        """
        with _below(Path(directory), name).open("rb") as stream:
            stream.seek(offset)
            return stream.read(PIECE)

    def tell(self, attempt: int, place: str, text: str, windows: Windows | None) -> None:
        """Note where an attempt is and what it is doing."""
        self._told.append((attempt, place, text, windows))

    def told(self) -> list[Told]:
        """Return what was noted since the last call."""
        told, self._told = self._told, []
        return told

    def end(self, attempt: int) -> None:
        """Let go of an attempt's run directory, and take nothing more from it."""
        self._over.add(attempt)
        held = self._held.pop(attempt, None)
        if held is not None and held.lock is not None:
            held.lock.close()

    def _folder(self, attempt: int) -> Path:
        """Return an attempt's run directory, which is made for its first file."""
        held = self._held.get(attempt)
        if held is None:
            raise _over(attempt)
        if held.lock is None:
            held.folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as on_error:
                lock = on_error.enter_context(lock_folder(held.folder))
                refuse_occupied(held.folder)
                on_error.pop_all()
            held.lock = lock
        return held.folder


def _over(attempt: int) -> StoreError:
    return StoreError(f"attempt {attempt} is over: another one may have its point.")


def _below(folder: Path, name: str) -> Path:
    if not is_below(name):
        raise StoreError(f"{name!r} is no path below {folder}.")
    return folder / name


def _behind(file: Path, offset: int) -> bytes | None:
    """Return what a file holds from an offset on; ``None`` where it does not come so far."""
    if not file.exists():
        return None if offset else b""
    with file.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) < offset:
            return None
        stream.seek(offset)
        return stream.read()


def _cut(file: Path, end: int) -> None:
    with file.open("r+b") as stream:
        stream.truncate(end)
        os.fsync(stream.fileno())


Call = Callable[..., Any]
"""``call(method, *arguments)`` of the collector, which waits."""

UNUSED_S = 7 * 24 * 3600.0
"""Seconds after which what nothing has used is removed, when something else arrives."""


class ForeignFolderError(StoreError):
    """Another user of the node has, and could write, the folder of what is brought there."""


def send_step(folder: Path, call: Call) -> None:
    """Send the folder of a step to the study; what says that it is whole goes last.

    Raises:
        StoreError: it is not whole.
        OSError: it cannot be read here, or written there.
    """
    record = read_step(folder)
    if record is None:
        raise StoreError(
            f"{folder} lost files before they were sent. Set TMPDIR on {platform.node()} to where nothing removes them."
        )
    for name in record.files:
        with (folder / name).open("rb") as stream:
            piece = stream.read(PIECE)
            call("add", name, piece)
            while piece := stream.read(PIECE):
                call("add", name, piece)
    call("finish_step", (folder / STEP).read_bytes())


def fetch(directory: str, call: Call) -> Path:
    """Return where the folder of a step lies on this node, brought here where it is not.

    Args:
        directory: of the step, on the driver's machine.
        call: of the collector.

    Raises:
        ForeignFolderError: another user may write where it would lie.
        StoreError: it is not what the study has.
        OSError: it cannot be read there, or written here.
    """
    content = call("step", directory)
    folder = _kept() / f"{Path(directory).name}-{hashlib.sha256(content).hexdigest()[:10]}"
    with wait_for_lock(lock_of(folder)):
        if read_step(folder) is None:
            _bring(directory, content, folder, call)
        os.utime(folder)
    return folder


def _kept() -> Path:
    """Return the folder of what was brought here, made where it is missing; nobody else writes into it."""
    user = os.getuid() if hasattr(os, "getuid") else None
    kept = Path(tempfile.gettempdir()) / f"harness-steps-{'user' if user is None else user}"
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user is not None and kept.lstat().st_uid != user:
        raise ForeignFolderError(
            f"{kept} belongs to another user of {platform.node()}. Set TMPDIR there, or have it removed."
        )
    return kept


def _bring(directory: str, content: bytes, folder: Path, call: Call) -> None:
    _remove_unused(folder.parent)
    arriving = unfinished(folder)
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir()
    try:
        (arriving / STEP).write_bytes(content)
        for name, facts in StepRecord.model_validate_json(content).made.items():
            digest = hashlib.sha256()
            (arriving / name).parent.mkdir(parents=True, exist_ok=True)
            with (arriving / name).open("wb") as stream:
                while stream.tell() < facts.bytes and (piece := call("piece", directory, name, stream.tell())):
                    stream.write(piece)
                    digest.update(piece)
            if digest.hexdigest() != facts.sha256:
                raise StoreError(
                    f"{directory}/{name} was changed since the step was made. Delete {directory}; the same command "
                    "with --retry-failed makes it again."
                )
        put_in_place(arriving, folder)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def _remove_unused(kept: Path) -> None:
    """Remove what nothing has used for long; locks stay, for somebody may be about to take one."""
    for entry in kept.iterdir():
        if entry.is_dir() and _is_unused(entry):
            with suppress(OSError, StoreError), wait_for_lock(lock_of(entry), 0):
                if _is_unused(entry):  # still, now that nobody can be about to use it
                    shutil.rmtree(entry)


def _is_unused(entry: Path) -> bool:
    with suppress(FileNotFoundError):
        return time.time() - entry.stat().st_mtime > UNUSED_S
    return False
