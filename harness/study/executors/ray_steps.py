"""Folders of steps on their way between the study and a node, in pieces.

What a node reads it gets once, by whatever process came first, into a folder of its temporary one that is named by the
content: points that follow one another, and a point that goes on after its process was lost, find it where it was. One
process of a node brings a folder, and the others wait for it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import StoreError
from harness.host.atomic_files import unfinished
from harness.study.executors.ray_collector import PIECE
from harness.study.step_folder import STEP, StepRecord, put_in_place, read_step
from harness.study.waiting_lock import lock_of, wait_for_lock

__all__ = ["ForeignFolderError", "fetch", "send_step"]

Call = Callable[..., Any]
"""``call(method, *arguments)`` of the collector, which waits."""

UNUSED_S = 7 * 24 * 3600.0
"""Seconds after which what nothing has used is removed, when something else arrives."""


class ForeignFolderError(StoreError):
    """Another user of the node has, and could write, the folder of what is brought there."""


def send_step(folder: Path, call: Call) -> None:
    """Send the folder of a step to the study; what says that it is whole goes last.

    Raises:
        StoreError: it is not whole.
        OSError: it cannot be read here, or written there.
    """
    record = read_step(folder)
    if record is None:
        raise StoreError(
            f"{folder} lost files before they were sent. Set TMPDIR on {platform.node()} to where nothing removes them."
        )
    for name in record.files:
        with (folder / name).open("rb") as stream:
            piece = stream.read(PIECE)
            call("add", name, piece)
            while piece := stream.read(PIECE):
                call("add", name, piece)
    call("finish_step", (folder / STEP).read_bytes())


def fetch(directory: str, call: Call) -> Path:
    """Return where the folder of a step lies on this node, brought here where it is not.

    Args:
        directory: of the step, on the driver's machine.
        call: of the collector.

    Raises:
        ForeignFolderError: another user may write where it would lie.
        StoreError: it is not what the study has.
        OSError: it cannot be read there, or written here.
    """
    content = call("step", directory)
    folder = _kept() / f"{Path(directory).name}-{hashlib.sha256(content).hexdigest()[:10]}"
    with wait_for_lock(lock_of(folder)):
        if read_step(folder) is None:
            _bring(directory, content, folder, call)
        os.utime(folder)
    return folder


def _kept() -> Path:
    """Return the folder of what was brought here, made where it is missing; nobody else writes into it."""
    user = os.getuid() if hasattr(os, "getuid") else None
    kept = Path(tempfile.gettempdir()) / f"harness-steps-{'user' if user is None else user}"
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user is not None and kept.lstat().st_uid != user:
        raise ForeignFolderError(
            f"{kept} belongs to another user of {platform.node()}. Set TMPDIR there, or have it removed."
        )
    return kept


def _bring(directory: str, content: bytes, folder: Path, call: Call) -> None:
    _remove_unused(folder.parent)
    arriving = unfinished(folder)
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir()
    try:
        (arriving / STEP).write_bytes(content)
        for name, facts in StepRecord.model_validate_json(content).made.items():
            digest = hashlib.sha256()
            (arriving / name).parent.mkdir(parents=True, exist_ok=True)
            with (arriving / name).open("wb") as stream:
                while stream.tell() < facts.bytes and (piece := call("piece", directory, name, stream.tell())):
                    stream.write(piece)
                    digest.update(piece)
            if digest.hexdigest() != facts.sha256:
                raise StoreError(
                    f"{directory}/{name} was changed since the step was made. Delete {directory}; the same command "
                    "with --retry-failed makes it again."
                )
        put_in_place(arriving, folder)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def _remove_unused(kept: Path) -> None:
    """Remove what nothing has used for long; locks stay, for somebody may be about to take one."""
    for entry in kept.iterdir():
        if entry.is_dir() and _is_unused(entry):
            with suppress(OSError, StoreError), wait_for_lock(lock_of(entry), 0):
                if _is_unused(entry):  # still, now that nobody can be about to use it
                    shutil.rmtree(entry)


def _is_unused(entry: Path) -> bool:
    with suppress(FileNotFoundError):
        return time.time() - entry.stat().st_mtime > UNUSED_S
    return False
