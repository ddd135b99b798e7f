"""Files of records: lines and documents, refused in one line when damaged, and written so that a kill tears none.

Seals bind the files of a run to each other. The store adds them behind the fields of a record, so that readers that do
not look for them ignore them:

* ``manifest.json`` ends with ``"sha256"`` over its own bytes before that member, its *seal*; its ``"run"`` is 16
  hexadecimal digits, drawn when the run is made;
* a line of ``samples.jsonl`` ends with ``"run"``;
* a line of ``windows.jsonl`` ends with ``"run"`` and ``"sha256"`` over the seal before it, the lines of its samples and
  its own bytes before that member: its seal, which the next line's covers.

So a changed, lost, added or exchanged byte of anything committed breaks the chain. ``summary.json`` names the last seal
of the records it was made of, and has one of its own. Not promised: protection against somebody who writes new seals.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import OutdatedError, StoreError
from harness.host.files import DocumentError, open_regular, parse_json, read_bytes, replace_files, sync
from harness.records import SCHEMA_VERSION

_SEAL = re.compile(rb'(?:,\n  "sha256": "([0-9a-f]{64})"\n|,"sha256":"([0-9a-f]{64})")}\n\Z')
_LONGEST_END = 256
"""Bytes; what the store adds is shorter."""


def new_run() -> str:
    """Return the id of a new run."""
    return secrets.token_hex(8)


def with_run(line: bytes, run: str) -> bytes:
    """Return a record's line with the run's id; as it is for a run without one, which has no seals."""
    return line.removesuffix(b"}\n") + f',"run":"{run}"}}\n'.encode() if run else line


def seal_of(before: str, parts: Iterable[bytes]) -> str:
    """Return the seal over an earlier one and the bytes that follow it."""
    digest = hashlib.sha256(before.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sealed_document(document: bytes) -> tuple[bytes, str]:
    """Return an indented JSON object with a seal over its own bytes as the last member, and the seal."""
    body = document.removesuffix(b"\n}\n")
    seal = seal_of("", [body])
    return body + f',\n  "sha256": "{seal}"\n}}\n'.encode(), seal


def sealed_window(line: bytes, samples: bytes, run: str, before: str) -> tuple[bytes, str]:
    """Return a window's line with the run's id and its seal, and the seal."""
    if not run:
        return line, ""
    body = with_run(line, run).removesuffix(b"}\n")
    seal = seal_of(before, [samples, body])
    return body + f',"sha256":"{seal}"}}\n'.encode(), seal


def split_seal(record: bytes) -> tuple[bytes, str]:
    """Return what a seal covers of a record, and the seal; all of it, and an empty one, where it bears none."""
    found = _SEAL.search(record, max(0, len(record) - _LONGEST_END))
    return (record[: found.start()], (found[1] or found[2]).decode()) if found else (record, "")


REMEDY = "Omit the run, or measure it again with `harness run`."
ACCESS = "Make it readable, or omit the run."
LONGEST_LINE_BYTES = 64 << 20
"""No record comes near it; reading stops there, whatever a file holds."""

R = TypeVar("R", bound=BaseModel)


def line_of(record: BaseModel) -> bytes:
    """Return a record as one line of JSON."""
    try:
        return record.model_dump_json().encode() + b"\n"
    except ValueError as error:  # half of a surrogate pair in a text
        raise StoreError(f"a {type(record).__name__} cannot be written as JSON: {error}.") from None


def lines(file: Path, start: int = 0) -> Iterator[bytes]:
    """Iterate the whole lines of a file, each with its newline; an incomplete last line is omitted."""
    try:
        with open_regular(file) as stream:
            stream.seek(start)
            while (line := stream.readline(LONGEST_LINE_BYTES)).endswith(b"\n"):
                yield line
            if len(line) == LONGEST_LINE_BYTES:
                raise StoreError(f"{file} is damaged: a line has more than {LONGEST_LINE_BYTES >> 20} MiB. {REMEDY}")
    except FileNotFoundError:  # nothing was committed yet
        return
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}. {ACCESS}") from None


def parse(kind: type[R], data: bytes, file: Path, line: int | None = None) -> R:
    """Return the record that a line or a document holds."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = str(file) if line is None else f"{file}, line {line}"
        field = "".join(f"{part}: " for part in first["loc"])
        raise StoreError(f"{place} is damaged: {field}{first['msg']}. {REMEDY}") from None


def read_document(kind: type[R], file: Path, known: int = SCHEMA_VERSION) -> tuple[R, str]:
    """Read a JSON document, its schema version first: another version need not fit the model."""
    try:
        data = read_bytes(file)
        content = parse_json(data)
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}. {ACCESS}") from None
    except DocumentError as error:
        raise StoreError(f"{file} is damaged: {error}. {REMEDY}") from None
    check_version(content, str(file), known)
    document = parse(kind, data, file)
    body, seal = split_seal(data)
    if (seal or "sha256" in content or content.get("run")) and seal != seal_of("", [body]):
        raise StoreError(f"{file} is not what the harness wrote: it was changed, or is damaged. {REMEDY}")
    return document, seal


def check_version(
    content: object, what: str, known: int = SCHEMA_VERSION, name: str = "schema_version", remedy: str = ""
) -> None:
    """Refuse what is foreign, damaged, or of another version (:class:`OutdatedError`)."""
    version = content.get(name) if isinstance(content, dict) else None
    if version is None:
        raise StoreError(f"{what} is foreign: it has no {name}. {remedy or REMEDY}")
    if type(version) is not int:
        raise StoreError(f"{what} is damaged: its {name} {version!r} is no whole number. {remedy or REMEDY}")
    if version != known:
        raise OutdatedError(
            f"{what} has {name} {version} and this harness reads {known}. "
            f"{remedy or 'Use the version of early-exit-harness that wrote it.'}"
        )


def append(file: Path, data: bytes) -> None:
    """Append and flush to the disk. Unbuffered: a buffer could be written later, after a roll-back."""
    is_new = not file.exists()
    with file.open("ab", buffering=0) as stream:
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]
        os.fsync(stream.fileno())
    if is_new:
        sync(file.parent)


def write_document(file: Path, record: BaseModel) -> str:
    """Write or replace a document in one step, and return its seal; on return it is on the disk."""
    document, seal = sealed_document(record.model_dump_json(indent=2).encode() + b"\n")
    try:
        replace_files({file: document}, durable=True)
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}.") from None
    return seal
