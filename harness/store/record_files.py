"""Files of records: lines and documents, read with one line of refusal and written so that a kill cannot tear them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import StoreError
from harness.records import SCHEMA_VERSION

__all__ = ["ACCESS", "REMEDY", "append", "line_of", "lines", "parse", "read_document", "write_atomically"]

TEMPORARY = ".tmp"
"""What the name of a document ends in until it is whole."""

REMEDY = "Leave the run out, or measure it again with `harness run`."
ACCESS = "Make it readable, or leave the run out."

R = TypeVar("R", bound=BaseModel)


def line_of(record: BaseModel) -> bytes:
    """Return a record as one line of JSON.

    Raises:
        StoreError: it holds what JSON cannot.
    """
    try:
        return record.model_dump_json().encode() + b"\n"
    except ValueError as error:  # half of a surrogate pair in a text
        raise StoreError(f"a {type(record).__name__} cannot be written as JSON: {error}.") from None


def lines(file: Path) -> Iterator[bytes]:
    """Iterate the whole lines of a file, each with its newline; a torn last line is left out."""
    try:
        with file.open("rb") as stream:
            yield from (line for line in stream if line.endswith(b"\n"))
    except FileNotFoundError:  # nothing was committed yet
        return
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}. {ACCESS}") from None


def parse(kind: type[R], data: bytes, file: Path, line: int | None = None) -> R:
    """Return the record that a line or a document holds.

    Raises:
        StoreError: it is none.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = str(file) if line is None else f"{file}, line {line}"
        field = "".join(f"{part}: " for part in first["loc"])
        raise StoreError(f"{place} is damaged: {field}{first['msg']}. {REMEDY}") from None


def read_document(kind: type[R], file: Path, known: int = SCHEMA_VERSION) -> R:
    """Read a JSON document, its schema version first: another version need not fit the model.

    Raises:
        StoreError: it cannot be read, is damaged, or of another version.
    """
    try:
        data = file.read_bytes()
        content = json.loads(data)
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}. {ACCESS}") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{file} is damaged: not JSON ({error}). {REMEDY}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version is None:
        raise StoreError(f"{file} is foreign: it has no schema_version. {REMEDY}")
    if version != known:
        raise StoreError(
            f"{file} has schema version {version!r} and this harness reads {known}. "
            "Use the version of early-exit-harness that wrote it."
        )
    return parse(kind, data, file)


def append(file: Path, data: bytes) -> None:
    """Append and force to the disk. Unbuffered: a buffer would write its rest later, behind a roll-back."""
    is_new = not file.exists()
    with file.open("ab", buffering=0) as stream:
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]
        os.fsync(stream.fileno())
    if is_new:
        _sync_folder(file.parent)


def write_atomically(file: Path, record: BaseModel) -> None:
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
