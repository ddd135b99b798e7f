"""A completion ends with the statement that it completes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tasks.stops.syntax import CLOSERS, Code, SyntaxStop

__all__ = ["Statement"]

_COMPOUND = frozenset(
    {"if_statement", "for_statement", "while_statement", "try_statement", "with_statement", "match_statement"}
)
"""Python's; the head of one is no statement."""


@dataclass(frozen=True)
class Statement(SyntaxStop):
    """End a completion as soon as it and the code before it complete a statement, the innermost one.

    Behind the head of a loop that is the first statement inside. Java: behind a ``;`` outside parentheses, or a ``}``
    with which a statement or a declaration ends without an error; an ``else`` that might follow is not waited for.
    Python: at the end of a line, or behind a ``;``, with which a simple statement is complete without an error,
    brackets and strings closed. Tokens, statements and errors are tree-sitter's.
    """

    rule: ClassVar[str] = "statement"

    def asked(self, text: str, place: int, language: str) -> bool:
        """Only behind what can end a statement."""
        return text[place] in (";}" if language == "java" else ";\n")

    def ends(self, code: Code) -> bool:
        """Whether the last character ends a statement."""
        return _java(code) if code.language == "java" else _python(code)


def _java(code: Code) -> bool:
    if not code.leaves or code.in_literal or code.leaves[-1].end_byte != len(code.source):  # or in a comment
        return False
    opened, stray = code.nesting[-1]
    if opened and opened[-1] != "{":
        return False
    if code.leaves[-1].type == ";" or stray:
        return True
    end = len(code.source)
    closed = Code(
        code.source.decode(errors="replace") + "".join(CLOSERS[one] for one in reversed(opened)), 0, code.language
    )
    node = closed.root.descendant_for_byte_range(end - 1, end)
    while node is not None and node.end_byte == end:
        if node.type.endswith(("_statement", "_declaration", "switch_expression")) and not node.has_error:
            return True
        node = node.parent
    return False


def _python(code: Code) -> bool:
    mark = len(code.source) - 1
    leaves = [leaf for leaf in code.leaves if leaf.end_byte <= mark]
    if not leaves or code.in_literal or code.nesting[len(leaves) - 1][0]:
        return False
    last = leaves[-1]
    if code.source[mark:] == b";":
        if code.leaves[-1].type != ";" or code.leaves[-1].end_byte != mark + 1:
            return False  # in a comment or a literal
    elif b"\n" in code.source[last.end_byte : max(code.cursor, last.end_byte)]:
        return False  # it was complete before the cursor
    elif code.source[last.end_byte : mark].rstrip().endswith(b"\\"):
        return False  # the line goes on
    statement = _simple_statement(last)
    return statement is not None and not statement.has_error


def _simple_statement(leaf: Any) -> Any:
    """Return the simple statement that a leaf belongs to; ``None`` where there is none, or the head of a compound."""
    node = leaf
    while node is not None and not node.type.endswith("_statement"):
        node = node.parent
    return None if node is None or node.type in _COMPOUND else node
