"""Report files, each replaced whole: a reader finds the old one or the new one, never half of either."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from harness.errors import StoreError

__all__ = ["replace_file", "write_files"]


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole; whatever happens, no half of it is left.

    Raises:
        StoreError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}. Use --out with a folder that can be.") from None
    finally:  # an interrupt, too, leaves nothing behind
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_files(folder: Path, texts: Mapping[str, str]) -> tuple[Path, ...]:
    """Write name → text into a folder that exists; return the paths.

    Raises:
        StoreError: a file cannot be written.
    """
    for name, text in texts.items():
        replace_file(folder / name, text.encode())
    return tuple(folder / name for name in texts)
