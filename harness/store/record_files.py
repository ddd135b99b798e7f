"""Files of records: lines and documents, refused in one line when damaged, and written so that a kill tears none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import StoreError
from harness.host.atomic_files import replace_files, sync_folder
from harness.records import SCHEMA_VERSION

__all__ = ["ACCESS", "REMEDY", "append", "line_of", "lines", "parse", "read_document", "write_document"]

REMEDY = "Omit the run, or measure it again with `harness run`."
ACCESS = "Make it readable, or omit the run."

R = TypeVar("R", bound=BaseModel)


def line_of(record: BaseModel) -> bytes:
    """Return a record as one line of JSON.

    Raises:
        StoreError: it holds a value that JSON cannot represent.
    """
    try:
        return record.model_dump_json().encode() + b"\n"
    except ValueError as error:  # half of a surrogate pair in a text
        raise StoreError(f"a {type(record).__name__} cannot be written as JSON: {error}.") from None


def lines(file: Path) -> Iterator[bytes]:
    """Iterate the whole lines of a file, each with its newline; an incomplete last line is omitted."""
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
        StoreError: it is damaged.
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
    """Append and flush to the disk. Unbuffered: a buffer could be written later, after a roll-back."""
    is_new = not file.exists()
    with file.open("ab", buffering=0) as stream:
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]
        os.fsync(stream.fileno())
    if is_new:
        sync_folder(file.parent)


def write_document(file: Path, record: BaseModel) -> None:
    """Write or replace a document in one step; on return it is on the disk.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        replace_files({file: record.model_dump_json(indent=2).encode() + b"\n"}, durable=True)
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}.") from None
