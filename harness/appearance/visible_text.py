r"""Text of others made harmless to look at, and the words and JSON that are made of it.

Characters that speak to a terminal (``ESC``), reorder what stands beside them (``U+202E``) or that nobody sees become
the escape that Python writes for them: ``\x1b``, ``\u202e``. Each medium has one function that includes this one.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable
from typing import Any

_WITHOUT_INK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks that Python takes for printable and that show nothing."""


def is_hidden(character: str) -> bool:
    """Whether a character cannot be seen as what it is; a newline and a tab count."""
    return not character.isprintable() or character in _WITHOUT_INK


def visible(text: str) -> str:
    """Return a text with an escape for every character that is hidden; newlines and tabs stay as they are."""
    if text.isprintable() and _WITHOUT_INK.isdisjoint(text):
        return text
    return "".join(_escaped(character) for character in text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return a text as one line: as :func:`visible`, and every run of newlines, tabs and spaces is one space."""
    return " ".join(visible(text).split())


def shell_word(text: object) -> str:
    """Return a text, or a path, as one word of a shell that can be read and pasted."""
    word = str(text)
    if one_line(word) == word:
        return shlex.quote(word)
    return f"$'{''.join(map(_in_dollar_quotes, word))}'"


def shell_command(words: Iterable[object]) -> str:
    """Return a command that can be read and pasted, of one word each."""
    return " ".join(map(shell_word, words))


def escape_json(text: str) -> str:
    r"""Return a JSON document that reads back the same and in whose texts nothing is hidden: ``\u202e``."""
    if text.isascii() and "\x7f" not in text:
        return text  # whoever wrote it escaped the other control characters, as JSON must
    return re.sub(r"[^\x00-\x7e]", lambda found: _json_escape(found[0]) if is_hidden(found[0]) else found[0], text)


def json_text(value: Any, **how: Any) -> str:
    """Return an indented JSON document as :func:`escape_json` does; what is not finite is ``null``."""
    return escape_json(json.dumps(_finite(value), indent=2, allow_nan=False, **how))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escaped(character: str) -> str:
    if character in "\n\t" or not is_hidden(character):
        return character
    return character.encode("unicode_escape").decode("ascii")


def _in_dollar_quotes(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if is_hidden(character) or character == " ":
        escape = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
        return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", escape))
    return character


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
