"""Texts that scores compare: text with literals restored, and the tokens of code."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.contracts.scores import Pair
from tasks.languages import END_OF_LINE

__all__ = ["as_source", "code_tokens", "restore_literals", "restored"]

_NAMED_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
_TOKEN = re.compile(rf"{END_OF_LINE}|\w+|[^\w\s]")


def restore_literals(text: str) -> str:
    """Return text with CodeXGLUE's placeholders resolved, as ``post_process`` of the official evaluator does.

    ``<STR_LIT:x>`` → ``x``, the same for ``NUM`` and ``CHAR``; ``<NUM_LIT>`` → ``0``; ``<STR_LIT>``, ``<CHAR_LIT>`` →
    nothing.
    """
    text = text.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    return _NAMED_LITERAL.sub(lambda match: match[1], text)


def restored(pairs: Sequence[Pair]) -> list[Pair]:
    """Return texts and references with their literals restored."""
    return [(restore_literals(text), restore_literals(reference)) for text, reference in pairs]


def code_tokens(text: str) -> list[str]:
    """Return names, numbers and ``<EOL>`` whole, every other visible character by itself; case is kept.

    Unlike white-space tokens they do not depend on formatting, and unlike ROUGE's own they keep operators.
    """
    return _TOKEN.findall(text)


def as_source(text: str) -> str:
    """Return text that a parser can read: ``<EOL>`` becomes a newline."""
    return text.replace(END_OF_LINE, "\n")
