"""Data as scripts: ``file://`` pages may load a script and may not fetch a file.

A data file is one call, ``leaderboardData("KIND", {…});``. It is ASCII; ``<``, ``>`` and ``&`` are escaped, so that it
would be safe inside a page, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.appearance.visible_text import escape_json
from harness.errors import StoreError
from harness.host.foreign_files import LARGEST_LOG_BYTES, DocumentError, parse_json, read_text

__all__ = ["read_script", "script"]

_HEAD, _TAIL = "leaderboardData(", ");\n"


def script(kind: str, value: Any) -> str:
    """Return a JSON value as a script that hands it to the page."""
    text = escape_json(json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'{_HEAD}"{kind}",{text}{_TAIL}'


def read_script(path: Path, kind: str) -> Any:
    """Return the value of a data file.

    Raises:
        StoreError: it cannot be read, or is none of that kind.
    """
    try:
        text = read_text(path, LARGEST_LOG_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot read {path}: {reason}. Make the site again with another --out.") from None
    head = f'{_HEAD}"{kind}",'
    if not text.startswith(head) or not text.endswith(_TAIL):
        raise StoreError(f"{path} is no data file of a leaderboard. Make the site again with another --out.")
    try:
        return parse_json(text[len(head) : -len(_TAIL)])
    except DocumentError as error:
        raise StoreError(f"{path} is damaged: {error}. Make the site again with another --out.") from None
