"""Where functions end, by the syntax of a document."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.stops.syntax import LANGUAGES, Code

__all__ = ["function_ends"]

_FUNCTIONS = frozenset({"function_definition", "method_declaration", "constructor_declaration"})


def function_ends(source: str, ends: Sequence[int], language: str) -> list[float]:
    """Return for places of a document whether a function ends there.

    Args:
        source: the document.
        ends: the places: bytes of its UTF-8 before each.
        language: of the code.

    Returns:
        1 where the innermost function ends with white space behind it at most, 0 inside a function, NaN elsewhere, and
        everywhere in a language without grammar.
    """
    if language not in LANGUAGES:
        return [math.nan] * len(ends)
    code = Code(source, 0, language)
    functions, waiting = [], [code.root]
    while waiting:
        node = waiting.pop()
        if node.type in _FUNCTIONS and not node.has_error:
            functions.append((node.start_byte, node.end_byte))
        waiting.extend(node.children)
    found = []
    for end in ends:
        over = any(stop <= end and not code.source[stop:end].strip() for _, stop in functions)
        inside = any(start < end < stop for start, stop in functions)
        found.append(1.0 if over else 0.0 if inside else math.nan)
    return found
