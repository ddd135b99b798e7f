"""The folder of a step: what its command made, and ``step.json``, written last, which says that it is whole.

A folder without that file, or without one of the files that it lists, is never used. Sizes are compared whenever it is
looked at, hashes where it comes from elsewhere, or nothing but the folder says that it was made. Loads no torch.

Locks of files that several processes come to, one after the other; they end with whoever holds them.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import field_validator

from harness.contracts.executors import Command
from harness.errors import StoreError
from harness.host.files import DocumentError, open_regular, read_json, real_path, sync_folder
from harness.records import SCHEMA_VERSION
from harness.records.record import Count, Record
from harness.store.record_files import read_document, write_document

STEP = "step.json"
LOG = "step.log"
"""Output of the command: nothing is made of it, and it may be deleted."""
_PIECE = 1 << 20


def is_below(name: str) -> bool:
    """Whether a name can only be that of a file below a folder."""
    path = PurePosixPath(name)
    return bool(name) and "\\" not in name and not path.is_absolute() and ".." not in path.parts


class StepFile(Record):
    """One file of a step.

    Attributes:
        bytes: its size.
        sha256: of its content, 64 hexadecimal digits.
    """

    bytes: Count
    sha256: str


class StepRecord(Record):
    """The inputs of a step and the files it left.

    Attributes:
        schema_version: of the files of a study.
        created: UTC time, ISO 8601.
        command: as declared, in words; ``{NAME}`` is the folder of another step.
        identity: hash over the command, and over those of the steps that it names.
        files: path below the folder → what it holds. Checkpoints, which going on needs and nothing else, are left out.
    """

    schema_version: int
    created: str
    command: tuple[str, ...]
    identity: str
    files: dict[str, StepFile]

    @field_validator("files")
    @classmethod
    def _below(cls, value: dict[str, StepFile]) -> dict[str, StepFile]:
        for name in value:
            if not is_below(name):
                raise ValueError(f"{name!r} is no path below a folder")
        return value

    @property
    def made(self) -> dict[str, StepFile]:
        """The files that others read: all but the log."""
        return {name: file for name, file in self.files.items() if name != LOG}


def read_step(folder: Path, identity: str | None = None, *, verify: bool = False) -> StepRecord | None:
    """Return what says that a folder is whole; ``None`` where nothing does, or a file is missing or has another size.

    Args:
        folder: of the step.
        identity: that it must have; ``None`` for any.
        verify: whether files must also have the content that was made.

    Raises:
        StoreError: it cannot be read now, or by this version of the harness; it may be whole.
    """
    try:
        record = _read(folder / STEP)
        if record is None or identity not in (None, record.identity):
            return None
        is_whole = all(_size(folder / name) == file.bytes for name, file in record.made.items()) and (
            not verify or all(_hash(folder / name) == file.sha256 for name, file in record.made.items())
        )
    except OSError as error:
        raise StoreError(
            f"cannot read {error.filename or folder}: {error.strerror}. Make it readable, or delete {folder}: what "
            "needs it has it made again."
        ) from None
    return record if is_whole else None


def _read(file: Path) -> StepRecord | None:
    """Return a record; ``None`` where there is none, or it is damaged.

    Raises:
        StoreError: another version of the harness wrote it.
        OSError: it cannot be read.
    """
    if _size(file) is None:
        return None
    try:
        return read_document(StepRecord, file)[0]
    except StoreError as error:
        cause = error.__context__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise cause from None
        with suppress(DocumentError, FileNotFoundError):
            content = read_json(file)
            version = content.get("schema_version") if isinstance(content, dict) else None
            if isinstance(version, int) and version != SCHEMA_VERSION:
                raise
        return None


def finish_step(folder: Path, command: Command) -> None:
    """Flush what a command made to the disk, and say that it is whole.

    Raises:
        StoreError: it made nothing, or that it is whole cannot be said.
        OSError: a file cannot be read.
    """
    files = {name: _flushed(folder / name) for name in _files(folder)}
    if not files.keys() - {LOG}:
        raise StoreError(
            "its command ended well and left no file. Give it by itself, with --out DIR, to see what it does."
        )
    for inside in {folder.parent, folder, *((folder / name).parent for name in files)}:
        sync_folder(inside)
    record = StepRecord(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command.words,
        identity=command.identity,
        files=files,
    )
    write_document(folder / STEP, record)


def put_in_place(folder: Path, target: Path) -> None:
    """Let a whole folder take the place of what lies at another path of the same disk; on return it is on the disk."""
    shutil.rmtree(target, ignore_errors=True)
    os.replace(folder, target)
    sync_folder(target.parent)


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy files of a folder into another one, and flush them to the disk.

    Args:
        source: where they lie.
        target: a folder, made where it is missing.
        names: paths below both.

    Raises:
        OSError: one cannot be copied, or lies behind a link, which may lead anywhere.
    """
    target.mkdir(parents=True, exist_ok=True)
    folders = {target}
    for name in names:
        if real_path(source / name) != real_path(source) / name:
            raise OSError(errno.ELOOP, "it lies behind a link", str(source / name))
        folders.add((target / name).parent)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with open_regular(source / name) as read, (target / name).open("xb") as written:
            shutil.copyfileobj(read, written)
            written.flush()
            os.fsync(written.fileno())
    for folder in folders:
        sync_folder(folder)


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of a result; what is hidden, and checkpoints, are none."""
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        unfinished = any(part.startswith(".") or part.endswith(("checkpoint", "checkpoints")) for part in below.parts)
        if path.is_file() and not unfinished and below.as_posix() != STEP:
            yield below.as_posix()


def _flushed(file: Path) -> StepFile:
    with file.open("rb" if sys.platform != "win32" else "r+b") as stream:  # there only a writer may flush
        digest = _digest(stream)
        os.fsync(stream.fileno())
        return StepFile(bytes=stream.tell(), sha256=digest)


def _hash(file: Path) -> str:
    with open_regular(file) as stream:
        return _digest(stream)


def _digest(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := stream.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _size(file: Path) -> int | None:
    """Return a file's size; ``None`` where there is none."""
    try:
        return file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


if sys.platform != "win32":
    import fcntl


LOOK_S = 0.2


def lock_of(folder: Path) -> Path:
    """Return the file whose lock says who may make a folder; it lies beside the folder, and stays there."""
    return folder.with_name(f".{folder.name}.lock")


def wait_for_lock(file: Path, seconds: float = math.inf) -> IO[bytes]:
    """Return a lock file, made where it is missing, once nobody else holds it; held until it is closed.

    A process that inherits its descriptor holds it as well. Where there are no such locks, nobody is waited for.

    Args:
        file: of the lock.
        seconds: to wait at most.

    Raises:
        StoreError: another process holds it for longer.
        OSError: it cannot be made, or its file system has no locks.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as on_error:
        lock = on_error.enter_context(file.open("ab"))
        while sys.platform != "win32":
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(f"{file} is held by another process. Stop it or wait for it.") from None
            time.sleep(LOOK_S)
        on_error.pop_all()
    return lock
