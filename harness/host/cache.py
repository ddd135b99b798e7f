"""The harness's files in the user's cache: everything there can be made again, by whoever needs it next.

A file is named by a hash of what decides what it holds, and is written under a name of its writer's own and renamed,
so that any number of processes may share it; documents and packed weights are verified when they are read. Of what was
measured, which weights format was the fastest is kept, and whoever takes it says so.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from harness.host.files import DocumentError, parse_json, read_bytes


@dataclass(frozen=True, slots=True)
class Kind:
    """Something that is kept.

    Attributes:
        what: in words.
        most: files of it; those that were not used for longest go first. ``None``: one for each that is installed.
    """

    what: str
    most: int | None


KINDS = {
    "converted": Kind("configurations and tokenizers of GGUF files, which take seconds to read", 16),
    "packed": Kind("weights packed for decoding, adapter merged", 6),  # three formats of two models
    "compiled": Kind("machine code of products and layers, which takes seconds to compile", 32),
    "configurations": Kind("what transformers makes of configurations and tokenizers, whose import takes seconds", 64),
    "choices": Kind("the fastest weights format of a model on this machine, as it was timed", 64),
    "digests": Kind("hashes of weight files, kept by size and time", 256),
    "summaries": Kind("summaries of runs, for the next report or leaderboard of many", 10_000),
}
"""Kinds of cached files; those with a bound are folders of their own."""

_ABANDONED_S = 3600  # age from which what is not finished has no writer any more
_written = count()
_FOLDERS = ("building-", "layers-")  # how the names of folders begin that are not whole yet; of files: .part


def cache_folder() -> Path:
    """Return the folder for what can be made again; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "early-exit-harness"


@dataclass(frozen=True, slots=True)
class Kept:
    """A file or folder that is kept; ``used`` is when it was last written or read, seconds since 1970."""

    kind: str
    path: Path
    size_bytes: int
    used: float


def kept() -> Iterator[Kept]:
    """Iterate what is kept; what another process takes away meanwhile is left out."""
    for entry in sorted(_entries(cache_folder())):
        for path in sorted(_entries(entry)) if entry.name in KINDS else [entry]:
            with suppress(OSError):
                files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
                facts = [file.stat() for file in files]
                size, used = sum(each.st_size for each in facts), max((each.st_mtime for each in facts), default=0.0)
                yield Kept(entry.name if entry.name in KINDS else "converted", path, size, used)


def clear(kinds: frozenset[str] = frozenset(KINDS)) -> int:
    """Delete what is kept and return how many bytes that were; a run that has it open goes on with what it has read."""
    freed = 0
    for one in kept():
        if one.kind in kinds:
            _remove(one.path)
            freed += 0 if one.path.exists() else one.size_bytes
    return freed


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def being_written(file: Path) -> Iterator[Path]:
    """Yield a path that no other writer has; what is there at the end becomes the file, whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=file.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        os.replace(name, file)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def own_folder(what: str) -> Iterator[Path]:
    """Yield a folder in the cache, ``building`` or ``layers``, and remove it unless it was renamed.

    What killed processes left of either is removed first.
    """
    base = cache_folder()
    base.mkdir(parents=True, exist_ok=True)
    _drop_abandoned(base)
    folder = Path(tempfile.mkdtemp(prefix=f"{what}-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_unfinished(path: Path) -> bool:
    return path.suffix == ".part" or path.name.startswith(_FOLDERS)


def _drop_abandoned(folder: Path) -> None:
    for path in filter(_is_unfinished, _entries(folder)):
        with suppress(OSError):  # another process may have removed it
            if path.stat().st_mtime < time.time() - _ABANDONED_S:
                _remove(path)


def drop_old(kind: str) -> None:
    """Remove what was used least recently beyond a kind's bound, and what killed writers left."""
    folder, most = cache_folder() / kind, KINDS[kind].most or 0
    _drop_abandoned(folder)
    ages: list[tuple[float, Path]] = []
    for path in _entries(folder):
        with suppress(OSError):
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(one for one in ages if not _is_unfinished(one[1]))[:-most]:
        _remove(path)


def kept_document(kind: str, key: str) -> Any:
    """Return the JSON value that is kept under a key; ``None`` without one, or where it is not what was written."""
    file = _document(kind, key)
    try:
        found = parse_json(gzip.decompress(read_bytes(file)))
        if found != _sealed(key, found["value"]):
            raise DocumentError("it is not what was written")
        with suppress(OSError):  # another user's
            os.utime(file)
    except (OSError, EOFError, zlib.error, DocumentError, KeyError, TypeError):
        with suppress(OSError):
            file.unlink()
        return None
    return found["value"]


def keep_document(kind: str, key: str, value: Any) -> None:
    """Keep a JSON value under a key, a hash of all that decides it; without room, or permission, it is not kept."""
    with suppress(OSError):
        with being_written(_document(kind, key)) as file:
            file.write_bytes(gzip.compress(json.dumps(_sealed(key, value)).encode(), 1, mtime=0))
        if next(_written) % (1 + (KINDS[kind].most or 0) // 1000) == 0:  # a look goes through all that are kept
            drop_old(kind)


def _document(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{key}.json.gz"


def _sealed(key: str, value: Any) -> dict[str, Any]:
    content = json.dumps([key, value], sort_keys=True).encode()
    return {"key": key, "value": value, "sha256": hashlib.sha256(content).hexdigest()}


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
