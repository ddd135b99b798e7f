"""Texts of a configuration: what none may hold, since it is written to a manifest and given to the file system, and how
something registered is named with its options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.host.foreign_files import DEEPEST_PATH

__all__ = ["parse_named", "writable"]


def writable(value: Any) -> Any:
    """Return a value whose texts and paths, those of its items included, can be written and opened.

    Raises:
        ValueError: one holds a NUL character, bytes that are not UTF-8, or more folders than any path needs.
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
    if text.count("/") > DEEPEST_PATH:
        raise ValueError(f"it has more than {DEEPEST_PATH} folders inside one another. Give a shorter path")


def parse_named(text: str, given: str, noun: str, form: str) -> tuple[str, dict[str, str]]:
    """Read ``NAME[:option=value]…``.

    Args:
        text: to be read.
        given: what a message quotes, for example ``stop = 'excess:0.5'``.
        noun: of what is named.
        form: what to write instead, a sentence.

    Returns:
        The name, and its options as text.

    Raises:
        ConfigError: the text does not have that form.
    """
    name, *pieces = (piece.strip() for piece in text.split(":"))
    if not name:
        raise ConfigError(f"{given} names no {noun}. {form}")
    options: dict[str, str] = {}
    for piece in pieces:
        option, _, value = (part.strip() for part in piece.partition("="))
        if not option or not value:
            raise ConfigError(f"{given} cannot be read at '{piece}'. {form}")
        if option in options:
            raise ConfigError(f"{given} gives option '{option}' twice.")
        options[option] = value
    return name, options
