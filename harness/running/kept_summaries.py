"""What is made of runs, in the user's cache, so that a second report of many does not score and resample them again.

A summary, or what became of scores that were computed again, is a function of a run's sealed records, of the code that
makes it and of the scores that are available. Its file's name is a hash of all three: a record, a line of this
project's code or an installed package that changes makes another name, so that nothing stale is read. Runs without
seals, and installations with metrics or scores of other projects, whose code may change unseen, are summarised every
time.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from harness.host.cache import being_written, cache_folder, drop_old
from harness.host.code import hash_of_code
from harness.host.foreign_files import read_bytes
from harness.records.record import Record
from harness.records.summary import Summary
from harness.registry import METRICS, SCORES
from harness.running.scoring import missing_scores

__all__ = ["FOLDER", "can_keep", "is_kept", "kept"]

R = TypeVar("R", bound=Record)

FOLDER = "summaries"
_CODE = ("harness", "reports", "tasks")
_SWEPT = 100
"""Summaries that a process writes between two looks for old ones: a look goes through all that are kept."""
_written = count()


def kept(seal: str, kind: type[R], make: Callable[[], R]) -> R:
    """Return what is made of a run's records: kept, or made and kept where the cache can be written.

    Args:
        seal: over the records; empty in older runs.
        kind: of what is made.
        make: makes it.
    """
    if not seal or _may_change_unseen():
        return make()
    file = _file(seal, kind)
    with suppress(OSError, EOFError, zlib.error, ValidationError):  # absent, or damaged: made again
        found = kind.model_validate_json(gzip.decompress(read_bytes(file)))
        with suppress(OSError):  # another user's
            os.utime(file)
        return found
    made = make()
    with suppress(OSError):
        with being_written(file) as part:
            part.write_bytes(gzip.compress(made.model_dump_json().encode(), 1, mtime=0))
        if next(_written) % _SWEPT == 0:
            drop_old(FOLDER)
    return made


def can_keep() -> bool:
    """Whether summaries can be kept at all, here and now."""
    if _may_change_unseen():
        return False
    folder = cache_folder() / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def is_kept(seal: str) -> bool:
    """Whether the summary of a run's records is kept; what is damaged counts as kept until it is read."""
    return os.path.exists(_file(seal, Summary))


def _may_change_unseen() -> bool:
    """Whether a summary is also made by code of other projects."""
    return METRICS.has_plugins or SCORES.has_plugins


def _file(seal: str, kind: type[Record]) -> Path:
    state = _hash(seal, kind.__name__, _code(), *METRICS.names(), *SCORES.names(), *missing_scores())
    return cache_folder() / FOLDER / f"{state}.json.gz"


@cache
def _code() -> str:
    """Return a hash of everything installed that a summary is made with."""
    installed = {path.name for folder in sys.path if folder for path in Path(folder).glob("*.dist-info")}
    return _hash(platform.python_version(), platform.machine(), *sorted(installed), hash_of_code(*_CODE))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
