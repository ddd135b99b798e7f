"""The folder of a step: what its command made, and ``step.json``, written last, which says that it is whole.

A folder without that file, or without one of the files that it lists, is never used. Loads no torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from pydantic import field_validator

from harness.contracts.executors import Command
from harness.errors import StoreError
from harness.host.atomic_files import sync_folder
from harness.records import SCHEMA_VERSION
from harness.records.record import Count, Record
from harness.store.record_files import read_document, write_document

__all__ = ["STEP", "StepFile", "StepRecord", "finish_step", "put_in_place", "read_step"]

STEP = "step.json"
_PIECE = 1 << 20


class StepFile(Record):
    """One file of a step.

    Attributes:
        bytes: its size.
        sha256: of its content, 64 hexadecimal digits.
    """

    bytes: Count
    sha256: str


class StepRecord(Record):
    """What a step was made with, and what it left.

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
            if not name or "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name!r} is no path below a folder")
        return value


def read_step(folder: Path, identity: str | None = None) -> StepRecord | None:
    """Return what says that a folder is whole; ``None`` where nothing does, or a file lacks or has another size.

    Args:
        folder: of the step.
        identity: that it must have; ``None`` for any.
    """
    if not (folder / STEP).is_file():
        return None
    try:
        record, _ = read_document(StepRecord, folder / STEP)
    except StoreError:
        return None
    is_whole = all(_size(folder / name) == file.bytes for name, file in record.files.items())
    return record if is_whole and identity in (None, record.identity) else None


def finish_step(folder: Path, command: Command) -> None:
    """Flush what a command made to the disk, and say that it is whole.

    Raises:
        StoreError: it made nothing, or that it is whole cannot be said.
        OSError: a file cannot be read.
    """
    files = {name: _flushed(folder / name) for name in _files(folder)}
    if not files:
        raise StoreError("it left no file")
    for inside in {folder, *((folder / name).parent for name in files)}:
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


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of a result; what is hidden, and checkpoints, are none."""
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        unfinished = any(part.startswith(".") or part.endswith(("checkpoint", "checkpoints")) for part in below.parts)
        if path.is_file() and not unfinished and below.as_posix() != STEP:
            yield below.as_posix()


def _flushed(file: Path) -> StepFile:
    digest = hashlib.sha256()
    with file.open("r+b") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
        os.fsync(stream.fileno())
        return StepFile(bytes=stream.tell(), sha256=digest.hexdigest())


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None
