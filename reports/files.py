"""Report files, each replaced whole; one that cannot be written is refused with the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.errors import StoreError
from harness.host.files import replace_files


def replace_file(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file whole; whatever happens, no half of it is left."""
    try:
        replace_files({path: content})
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}. Use --out with a folder that can be.") from None


def write_files(folder: Path, texts: Mapping[str, str | Iterable[str]]) -> tuple[Path, ...]:
    """Write name → text, whole or in parts, into a folder that exists; return the paths."""
    for name, text in texts.items():
        replace_file(folder / name, text.encode() if isinstance(text, str) else (part.encode() for part in text))
    return tuple(folder / name for name in texts)
