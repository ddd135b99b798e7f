"""JSON as ``json.dumps`` indents it, but by Python's fast encoder, which writes no indentation by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

__all__ = ["indented"]


def indented(value: Any, margin: str = "\n") -> str:
    """Return what ``json.dumps(value, indent=2)`` does.

    Args:
        value: as ``json.loads`` makes it; names are text.
        margin: a newline, and the indentation of the line that the value begins in.
    """
    if not _holds(value):
        return json.dumps(value)
    inner = f"{margin}  "
    if not any(map(_holds, value.values() if isinstance(value, dict) else value)):
        text = _encoder(inner)(value)
        return f"{text[0]}{inner}{text[1:-1]}{margin}{text[-1]}"
    if isinstance(value, dict):
        items = [f"{json.dumps(name)}: {indented(each, inner)}" for name, each in value.items()]
        return f"{{{inner}{f',{inner}'.join(items)}{margin}}}"
    return f"[{inner}{f',{inner}'.join(indented(each, inner) for each in value)}{margin}]"


def _holds(value: Any) -> bool:
    """Whether a value has others inside, each in a line of its own."""
    return isinstance(value, dict | list | tuple) and bool(value)


@lru_cache(maxsize=100)
def _encoder(inner: str) -> Callable[[Any], str]:
    return json.JSONEncoder(separators=(f",{inner}", ": ")).encode
