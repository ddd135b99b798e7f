"""Files replaced whole: a reader, and a crash, find the old content or the new one, never part of either."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["replace_files", "sync_folder", "unfinished"]


def unfinished(file: Path) -> Path:
    """Return the path that holds a file's content until it is complete; a killed process may leave it behind."""
    return file.with_name(f".{file.name}.part")


def replace_files(contents: Mapping[Path, bytes | Iterable[bytes]], *, durable: bool = False) -> None:
    """Write files, each whole, in the order given; all are complete before the first one is replaced.

    Args:
        contents: of each file, whole or in parts. Folders must exist.
        durable: flush contents and names to the disk, so that they survive a power failure.

    Raises:
        OSError: a file cannot be written. No unfinished file is left behind, not even by an interrupt.
    """
    try:
        for file, content in contents.items():
            if isinstance(content, bytes):
                unfinished(file).write_bytes(content)
            else:
                with unfinished(file).open("wb") as stream:
                    stream.writelines(content)
            if durable:
                _sync(unfinished(file))
        for file in contents:
            os.replace(unfinished(file), file)
        if durable:
            for folder in {file.parent for file in contents}:
                sync_folder(folder)
    finally:
        for file in contents:
            with suppress(OSError):
                unfinished(file).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, so that a new file survives a power failure."""
    if sys.platform != "win32":  # folders cannot be opened there
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
