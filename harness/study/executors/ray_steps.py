"""Folders of steps on their way between the study and a node, in pieces.

What a node reads it gets once, by whatever process came first, into a folder of its temporary one that is named by the
content: points that follow one another, and a point that goes on after its process was lost, find it where it was.
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
from harness.study.executors.ray_collector import PIECE
from harness.study.step_folder import STEP, StepRecord, read_step

__all__ = ["fetch", "send_step"]

Call = Callable[..., Any]
"""``call(method, *arguments)`` of the collector, which waits."""

UNUSED_S = 7 * 24 * 3600.0
"""Seconds after which what nothing has used is removed, when something else arrives."""


def send_step(folder: Path, call: Call) -> None:
    """Send the folder of a step to the study; what says that it is whole goes last.

    Raises:
        StoreError: it is not whole.
        OSError: it cannot be read here, or written there.
    """
    record = read_step(folder)
    if record is None:
        raise StoreError(f"{folder} is not whole.")
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
        StoreError: it is not what the study has, or others may write where it would lie.
        OSError: it cannot be read there, or written here.
    """
    content = call("step", directory)
    folder = _kept() / f"{Path(directory).name}-{hashlib.sha256(content).hexdigest()[:10]}"
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
        raise StoreError(f"{kept} belongs to another user of {platform.node()}. Set TMPDIR there, or have it removed.")
    return kept


def _bring(directory: str, content: bytes, folder: Path, call: Call) -> None:
    _remove_unused(folder.parent)
    arriving = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        (arriving / STEP).write_bytes(content)
        for name, facts in StepRecord.model_validate_json(content).files.items():
            digest = hashlib.sha256()
            (arriving / name).parent.mkdir(parents=True, exist_ok=True)
            with (arriving / name).open("wb") as stream:
                while stream.tell() < facts.bytes and (piece := call("piece", directory, name, stream.tell())):
                    stream.write(piece)
                    digest.update(piece)
            if digest.hexdigest() != facts.sha256:
                raise StoreError(f"{directory}/{name} was changed since the step was made. Make the step again.")
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another process was first
            os.replace(arriving, folder)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def _remove_unused(kept: Path) -> None:
    for entry in kept.iterdir():
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime > UNUSED_S:
                shutil.rmtree(entry)
