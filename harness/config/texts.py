"""What no name, path or text of a configuration may hold: it is written to a manifest and given to the file system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["writable"]


def writable(value: Any) -> Any:
    """Return a value whose texts and paths, those of its items included, can be written and opened.

    Raises:
        ValueError: one holds a NUL character, or bytes that are not UTF-8.
    """
    for item in value if isinstance(value, list | tuple) else (value,):
        if isinstance(item, str | Path):
            _check(str(item))
    return value


def _check(text: str) -> None:
    if "\0" in text:
        raise ValueError("it holds a NUL character, which no name and no path can have")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not valid UTF-8. Use a name that is") from None
