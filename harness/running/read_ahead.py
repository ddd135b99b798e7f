"""Summaries of many runs made ahead of their reader, by processes of their own on the cores that it may use.

A summary is most of what a run takes that is read for the first time. Processes of
:mod:`harness.running.summary_process` read the same runs in the same order and leave the summaries in the user's cache
(:mod:`harness.running.kept_summaries`); the reader waits for each run until its turn has passed there. What is shown,
refused or written is the reader's own doing: a run that its process could not read, or did not come to, is read and
summarised as if there were no process. Where no summary can be kept none is started.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from harness.errors import HarnessError, StoreError
from harness.host.interpreter import fresh_interpreter
from harness.host.processor import core_count, quota_cores
from harness.running.kept_summaries import can_keep, is_kept
from harness.store.run_directory import SAMPLES, last_seal

__all__ = ["DONE", "FEWEST_RUNS", "MOST_PROCESSES", "read_ahead"]

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
"""What a process says of each run, in a line of its own."""


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
    """Whether a run has a seal under which no summary is kept; what the seal is worth, whoever reads the run finds."""
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
            "harness.running.summary_process",
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
