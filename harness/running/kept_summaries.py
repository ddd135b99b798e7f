"""Summaries kept in the user's cache, so that a second report of many runs does not score and resample them again.

A summary, or what became of scores that were computed again, is a function of a run's sealed records, of the code that
makes it and of the scores that are available. Its file's name is a hash of all three: a record, a line of this
project's code or an installed package that changes makes another name, so that nothing stale is read. Runs without
seals, and installations with metrics or scores of other projects, whose code may change unseen, are summarised every
time.

Many summaries are made ahead of their reader, by processes of :mod:`harness.running.reading` on the cores that it may
use. They read the same runs in the same order; the reader waits for each run until its turn has passed there. What is
shown, refused or written is the reader's own doing: a run that its process could not read, or did not come to, is
summarised as if there were no process. Where no summary can be kept none is started.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from harness.errors import HarnessError, StoreError
from harness.host.cache import being_written, cache_folder, drop_old
from harness.host.environment import hash_of_code
from harness.host.files import read_bytes
from harness.host.interpreter import fresh_interpreter
from harness.host.processor import core_count, quota_cores
from harness.records.record import Record
from harness.records.summary import Summary
from harness.registry import METRICS, SCORES
from harness.running.scoring import missing_scores
from harness.store.committed import SAMPLES
from harness.store.run_directory import last_seal

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


logger = logging.getLogger(__name__)

FEWEST_RUNS = 24
"""Fewer runs without a summary than this are left to the reader: a process takes two seconds to start, and a run of
the demo's size a sixth of one."""

MOST_PROCESSES = 4
"""More would wait for the reader, which reads every run itself, and each holds a run and its libraries in memory."""

LARGEST_BYTES = 20_000_000
"""A run with more samples than that is left to the reader, which alone holds it then, and scores it by several
processes."""

DONE = b"done\n"
"""The line that a process writes after each run."""


@contextmanager
def read_ahead(directories: Sequence[Path]) -> Iterator[Callable[[Path], None]]:
    """Have runs summarised ahead of their reader, and yield what waits for one of them; at the end no process is left.

    Args:
        directories: in the order in which the reader will wait for them. What is no run, and runs whose summaries are
            kept by now, are not waited for.
    """
    ahead: dict[Path, subprocess.Popen[bytes]] = {}
    with ExitStack() as processes:
        for share in _shares(directories):
            with suppress(OSError):  # no room for one more process: its share is left to the reader
                process = processes.enter_context(_process(share))
                ahead.update(dict.fromkeys(share, process))

        def wait(directory: Path) -> None:
            process = ahead.pop(directory, None)
            if process is None or process.stdout is None or DONE in process.stdout:  # reads on to the next such line
                return
            for lost in [path for path, other in ahead.items() if other is process]:
                del ahead[lost]
            logger.warning("a process that reads ahead ended with exit code %d; its runs are read here", process.wait())

        yield wait


def _shares(directories: Sequence[Path]) -> list[list[Path]]:
    """Return what each process reads: none where that is not worth its start, or nothing can be kept."""
    count = int(min(core_count(), quota_cores() or MOST_PROCESSES, MOST_PROCESSES))
    try:
        if count < 2 or len(directories) < FEWEST_RUNS or not can_keep():
            return []
        new = list(dict.fromkeys(directory for directory in directories if _is_new(directory)))
    except HarnessError:  # a score or metric that cannot be loaded, which the reader will say
        return []
    return [new[first::count] for first in range(count)] if len(new) >= FEWEST_RUNS else []


def _is_new(directory: Path) -> bool:
    """Whether a run has a seal under which no summary is kept; whether the seal holds is for the reader to find."""
    with suppress(OSError, StoreError):
        seal = last_seal(directory) if os.path.getsize(directory / SAMPLES) <= LARGEST_BYTES else ""
        return bool(seal) and not is_kept(seal)
    return False


@contextmanager
def _process(share: Sequence[Path]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that tells of each run of its share; at the end it is stopped, whatever it does."""
    with tempfile.TemporaryFile() as paths:
        paths.write(json.dumps([str(path) for path in share]).encode())
        paths.seek(0)
        process = fresh_interpreter(
            "harness.running.reading",
            stdin=paths,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the reader meets what it met, and says so
            threads=1,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()
            process.wait()
