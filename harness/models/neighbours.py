"""What a misspelt model folder may have meant: folders beside it, and models of the catalogue."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from pathlib import Path

from harness.registry import MODELS

__all__ = ["absent_folder"]


def absent_folder(name: str) -> str:
    """Say that a folder does not exist, which part of its path is missing, and what is spelled alike.

    Args:
        name: as the user typed it.
    """
    typed = missing = Path(name)
    while missing.parent != missing and not _is_folder(missing.parent):
        missing = missing.parent
    where = "" if missing == typed else f": there is no {missing}"
    lead = "./" if name.startswith("./") else ""  # which a path drops
    close = [f"{lead}{folder}" for folder in _beside(missing, typed.relative_to(missing))]
    asked = " or ".join([*close, *difflib.get_close_matches(typed.name, MODELS.names(), n=1)])
    return f"the model folder {name} does not exist{where}.{f' Did you mean {asked}?' if asked else ''}"


def _beside(missing: Path, rest: Path) -> list[str]:
    """Return folders with a name like the missing one's, with the rest of the path where that is there."""
    siblings: list[str] = []
    with suppress(OSError):  # one that may not be looked into
        siblings = [one for one in os.listdir(_expanded(missing.parent)) if _is_folder(missing.parent / one)]
    found = [missing.parent / one for one in difflib.get_close_matches(missing.name, siblings)]
    return [str(one / rest if _is_folder(one / rest) else one) for one in found]


def _is_folder(path: Path) -> bool:
    return os.path.isdir(_expanded(path))


def _expanded(path: Path) -> str:
    return os.path.expanduser(path)
