"""Reads run directories for reports: one, or whatever of many can be read. Loads no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os.path import exists, isdir  # of pathlib they fail where one may not look
from pathlib import Path

from harness import environment
from harness.errors import HarnessError, StoreError
from harness.scoring import CorpusScores
from harness.store import LOCK, MANIFEST, RunDirectory
from reports.recorded import RecordedRun
from reports.summary.quality import corpora
from reports.summary.summarise import candidates, summarise

if sys.platform != "win32":
    import fcntl

__all__ = ["Refusal", "find_runs", "read_run", "read_runs"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A directory that could not be reported.

    Attributes:
        directory: which.
        reason: one line that says what is wrong and the remedy.
    """

    directory: Path
    reason: str


def read_run(path: Path, *, stored: bool = False) -> RecordedRun:
    """Read a run directory as far as it got, and summarise it.

    Args:
        path: of the run; a run may be writing it meanwhile.
        stored: take the ``summary.json`` that lies there rather than score everything again, where there is one.

    Raises:
        StoreError: missing, damaged or foreign directory, or one without a finished window.
    """
    in_use = _in_use(path)
    with RunDirectory.read(path) as store:
        if not store.finished():
            raise StoreError(f"{path} holds no finished window yet. Continue it with `harness run --resume {path}`.")
        manifest, windows, samples = store.manifest, tuple(store.windows()), tuple(store.samples())
        summary = store.read_summary() if stored else None
    if summary is None:
        scores = CorpusScores(corpora(candidates(manifest, windows, samples)))
        line = environment.machine_line(manifest.environment)
        summary = summarise(manifest, windows, samples, scores, machine=line)
    return RecordedRun(path, manifest, windows, samples, summary, in_use)


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the run directories that paths name: themselves, or all below a folder that is none, sorted.

    A path without any is returned as it is, for the reader to refuse. Each run comes once.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        below = [] if exists(path / MANIFEST) or not isdir(path) else sorted(path.rglob(MANIFEST))
        for run in [manifest.parent for manifest in below] or [path]:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def read_runs(
    paths: Iterable[Path], *, stored: bool = False, watch: Callable[[int, int], None] | None = None
) -> tuple[list[RecordedRun], list[Refusal]]:
    """Read every run that :func:`find_runs` finds; what cannot be read is returned with the reason.

    Args:
        paths: run directories, or folders of them.
        stored: as in :func:`read_run`.
        watch: is told after each how many of how many were read.
    """
    directories = find_runs(paths)
    runs: list[RecordedRun] = []
    refused: list[Refusal] = []
    for done, directory in enumerate(directories, 1):
        try:
            runs.append(read_run(directory, stored=stored))
        except HarnessError as error:
            refused.append(Refusal(directory, " ".join(str(error).split())))
        if watch is not None:
            watch(done, len(directories))
    return runs, refused


def _in_use(path: Path) -> bool:
    """Whether a run holds the directory's lock; where locks cannot be asked for, no."""
    if sys.platform == "win32":
        return False
    try:
        with (path / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or a file system without locks
        return False
    return False
