"""The run directory of a point as a study keeps it: whether it is measured, taken over from another study, set aside.

Loads no torch, unlike what measures it (:mod:`harness.study.point_run`).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from harness.errors import ConfigError, StoreError, reason
from harness.host.files import open_regular, sync_folder, unfinished
from harness.store.committed import SAMPLES, WINDOWS
from harness.store.run_directory import LOCK, SUMMARY, RunDirectory, is_damaged
from harness.study.step_folder import copy_files

ASIDE = "aside"
"""Folder in a study's of what was set aside."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Numbers of errors after which nothing can be written any more."""


def says_full(text: str) -> bool:
    """Whether what an error says is that nothing can be written any more."""
    return any(os.strerror(number) in text for number in FULL)


def holds_a_run(directory: Path) -> bool:
    """Whether there is anything of a run: more than the lock, and what a killed process leaves of a manifest."""
    return directory.is_dir() and any(not entry.name.startswith(".") for entry in directory.iterdir())


def is_measured(directory: Path) -> bool:
    """Whether a run is finished; reads it only where it may be.

    Raises:
        StoreError: as :func:`is_finished`.
    """
    return (directory / SUMMARY).exists() and is_finished(directory)


def is_finished(directory: Path) -> bool:
    """Read a run, and return whether its summary is of all that it holds. A damaged one is made again of the records.

    Raises:
        StoreError: the run is damaged, or cannot be read.
    """
    with RunDirectory.read(directory) as store:
        try:
            return store.read_summary() is not None
        except ConfigError:
            return False
        except StoreError as error:
            if not is_damaged(directory, error):
                raise
            return False


def take_over(source: Path, target: Path, files: Iterable[str] | None = None) -> None:
    """Copy what is finished; on return all of it is on the disk, and what stood in its place lies aside.

    Args:
        source: the folder of a run or a step.
        target: where it comes to lie.
        files: paths below it; ``None`` for all.

    Raises:
        StoreError: it cannot be copied.
    """
    part = unfinished(target)
    try:
        shutil.rmtree(part, ignore_errors=True)
        if files is None:
            _copy_folder(source, part)
        else:
            copy_files(source, part, files)
        if target.exists():
            os.replace(target, free_aside(target))
        os.replace(part, target)
        sync_folder(target.parent)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise StoreError(
            f"cannot copy {source}: {reason(error)}. What was taken over before is kept; the same command goes on."
        ) from None


def _copy_folder(source: Path, target: Path) -> None:
    """Copy files and folders, the lock apart, and flush them to the disk."""
    target.mkdir()
    for found in source.iterdir():
        if found.is_dir():
            _copy_folder(found, target / found.name)
        elif found.name != LOCK:
            with open_regular(found) as read, (target / found.name).open("xb") as written:
                shutil.copyfileobj(read, written)
                written.flush()
                os.fsync(written.fileno())
    sync_folder(target)


def records_bytes(directory: Path) -> int:
    """Return how large the records of a run are; they only grow."""
    return sum(file.stat().st_size for name in (WINDOWS, SAMPLES) if (file := directory / name).exists())


def free_aside(directory: Path) -> Path:
    """Return a free path in the study's folder of what was set aside, where no report looks."""
    (directory.parents[1] / ASIDE).mkdir(exist_ok=True)
    number = 1
    while (aside := directory.parents[1] / ASIDE / f"{directory.name}.{number}").exists():
        number += 1
    return aside
