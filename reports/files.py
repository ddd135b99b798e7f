"""Report files, each replaced whole: a reader finds the old one or the new one, never half of either."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.errors import StoreError

__all__ = ["write_files"]


def write_files(folder: Path, texts: Mapping[str, str]) -> tuple[Path, ...]:
    """Write name → text into a folder that exists; return the paths.

    Raises:
        StoreError: a file cannot be written.
    """
    paths = []
    for name, text in texts.items():
        path = folder / name
        unfinished = path.with_name(f".{name}.part")
        try:
            unfinished.write_text(text, encoding="utf-8", newline="")
            unfinished.replace(path)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}. Use --out with a folder that can be.") from None
        paths.append(path)
    return tuple(paths)
