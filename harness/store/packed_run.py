"""The archive of a published run: written reproducibly, and never trusted when it is read.

A ``.tar.gz`` with one folder that holds the files of a run directory and ``submission.json``, which lists the SHA-256
of the others. :func:`pack_folder` and :func:`unpack_folder` carry a folder between machines that trust each other.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from harness.errors import StoreError
from harness.host.files import open_regular, read_json, replace_files, sync
from harness.records import SCHEMA_VERSION
from harness.store.record_files import check_version

ARCHIVE = ".tar.gz"
RECORDS = ("manifest.json", "windows.jsonl", "samples.jsonl", "summary.json")
LIST = "submission.json"
LARGEST_BYTES = 1 << 30
"""Limit of an unpacked archive: its files together, the archive's own headers included."""

_LONGEST_NAME = 100


def write_archive(file: Path, name: str, records: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Write an archive, replaced whole."""
    listed = {each: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for each, data in records.items()}
    about = {"schema_version": SCHEMA_VERSION, "files": listed, **facts}
    files = {**records, LIST: json.dumps(about, indent=2).encode() + b"\n"}
    size = sum(map(len, files.values()))
    if size > LARGEST_BYTES * 0.99:  # which leaves room for the archive's own headers
        raise StoreError(
            f"{name} has {size >> 20} MiB of records, and what is submitted may have {LARGEST_BYTES >> 20}. "
            "Measure fewer samples or operating points in a run: --limit, or one run per strategy."
        )
    content = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=content, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for each in sorted(files):
            member = tarfile.TarInfo(f"{_folder_name(name)}/{each}")
            member.size, member.mode = len(files[each]), 0o644
            tar.addfile(member, io.BytesIO(files[each]))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_files({file: content.getvalue()})
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}. Use another --out.") from None


def pack_folder(folder: Path, names: Iterable[str]) -> bytes:
    """Return an archive of files of a folder: paths below it, ``/`` between their parts."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in names:
            tar.add(folder / name, name, recursive=False)
    return content.getvalue()


def unpack_folder(archive: bytes, folder: Path) -> None:
    """Make a folder of an archive of :func:`pack_folder`; on return its files are on the disk."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    for found in (folder, *folder.rglob("*")):
        sync(found)


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """Unpack a packed run into a temporary folder, checked file by file, and return the run directory."""
    with TemporaryDirectory(prefix="harness-") as scratch:
        try:
            with (
                open_regular(archive) as file,
                gzip.GzipFile(fileobj=file) as packed,
                tarfile.open(fileobj=_Limited(packed, archive), mode="r|", tarinfo=_PlainMember) as tar,
            ):
                folder = _extract(tar, archive, Path(scratch))
        except (OSError, EOFError, tarfile.TarError, ValueError, zlib.error) as error:
            why = getattr(error, "strerror", None) or error
            raise StoreError(f"{archive} cannot be unpacked: {why}. Pack it again with `harness submit`.") from None
        _verify(folder, archive)
        yield folder


class _PlainMember(tarfile.TarInfo):
    """A member that is refused on its first block unless it is a plain file: an extended header is read whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise tarfile.ExtractError(f"it holds {member.name[:80]!r}, which is not a plain file")
        return member


class _Limited(io.RawIOBase):
    """A stream that raises once an archive becomes too large."""

    def __init__(self, stream: gzip.GzipFile, archive: Path) -> None:
        self._stream, self._archive, self._room = stream, archive, LARGEST_BYTES

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._room -= len(data)
        if self._room < 0:
            raise StoreError(f"{self._archive} unpacks to more than {LARGEST_BYTES >> 20} MiB, the limit.")
        return data


def _folder_name(name: str) -> str:
    safe = re.sub(r"[^\w.-]+", "-", name).encode("utf-8", "ignore")[:_LONGEST_NAME].decode("utf-8", "ignore")
    return safe.strip(".-") or "run"


def _extract(tar: tarfile.TarFile, archive: Path, scratch: Path) -> Path:
    """Write the members of a packed run under names of our own, never where the archive says."""
    folders = set()
    for member in tar:
        folder, _, name = member.name.partition("/")
        folders.add(scratch / _folder_name(folder))
        content = tar.extractfile(member) if name in (*RECORDS, LIST) else None
        if content is None or len(folders) > 1:
            raise StoreError(
                f"{archive} holds {member.name[:80]!r}, which a packed run does not. Pack it with `harness submit`."
            )
        (scratch / _folder_name(folder)).mkdir(exist_ok=True)
        with (scratch / _folder_name(folder) / name).open("xb") as file:
            shutil.copyfileobj(content, file)
    if not folders:
        raise StoreError(f"{archive} is empty. Pack it with `harness submit`.")
    return folders.pop()


def _verify(folder: Path, archive: Path) -> None:
    try:
        facts = read_json(folder / LIST)
        listed = {name: facts["files"][name]["sha256"] for name in RECORDS}
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"{archive} has no usable {LIST}. Pack it with `harness submit`.") from None
    check_version(facts, str(archive))
    for name, digest in listed.items():
        file = folder / name
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise StoreError(f"{archive}: {name} is not the file that {LIST} lists. Pack it with `harness submit`.")
