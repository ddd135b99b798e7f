"""What the harness keeps in the user's cache: everything there can be made again, by whoever needs it next."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "Kept", "cache_folder", "clear", "kept"]

KINDS = {
    "converted": "models converted from GGUF, which takes ten seconds",
    "packed": "weights packed for decoding, adapter merged",
    "observed": "scores that thresholds given as percentiles come from",
    "summaries": "summaries of runs, for the next report or leaderboard of many",
}
"""What is kept, by kind; all but ``converted`` are folders of their own."""


def cache_folder() -> Path:
    """Return the folder for what can be made again; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "early-exit-harness"


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that is kept.

    Attributes:
        kind: of :data:`KINDS`.
        path: a file or a folder.
        size_bytes: of all its files.
        used: when it was last written or said to be used, seconds since 1970.
    """

    kind: str
    path: Path
    size_bytes: int
    used: float


def kept() -> Iterator[Kept]:
    """Iterate what is kept; what another process takes away meanwhile is left out."""
    for entry in sorted(_entries(cache_folder())):
        if entry.name in KINDS:
            yield from (one for file in sorted(_entries(entry)) if (one := _kept(entry.name, file)) is not None)
        elif (one := _kept("converted", entry)) is not None:
            yield one


def clear(kinds: frozenset[str] = frozenset(KINDS)) -> int:
    """Delete what is kept and return how many bytes that were; a run that has it open goes on with what it has read."""
    freed = 0
    for one in kept():
        if one.kind not in kinds:
            continue
        if one.path.is_dir() and not one.path.is_symlink():
            shutil.rmtree(one.path, ignore_errors=True)
        else:
            one.path.unlink(missing_ok=True)
        freed += 0 if one.path.exists() else one.size_bytes
    return freed


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _kept(kind: str, path: Path) -> Kept | None:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    try:
        facts = [file.stat() for file in files]
    except OSError:
        return None
    return Kept(kind, path, sum(each.st_size for each in facts), max((each.st_mtime for each in facts), default=0.0))
