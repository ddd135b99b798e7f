"""A completion ends with the block that the cursor stands in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tasks.stops.syntax import Code, SyntaxStop

__all__ = ["Block"]


@dataclass(frozen=True)
class Block(SyntaxStop):
    """End a completion with the innermost block that the cursor stands in.

    Java: with the ``}`` that closes the innermost ``{`` open at the cursor. Python: with the first character of a line
    that is indented less than the cursor's line, or less than the first one that the completion begins, brackets and
    strings closed; that character, which shows the end, is part of the completion, and so is the rest of its token.
    Brackets and literals are those of tree-sitter.
    """

    rule: ClassVar[str] = "block"

    def asked(self, text: str, place: int, language: str) -> bool:
        """Only behind what can show the end of a block."""
        if language == "java":
            return text[place] == "}"
        before = text[:place].rpartition("\n")
        return bool(before[1]) and not before[2].strip() and not text[place].isspace()

    def ends(self, code: Code) -> bool:
        """Whether the last character shows that the block is over."""
        return _java(code) if code.language == "java" else _python(code)


def _java(code: Code) -> bool:
    if not code.leaves or code.in_literal or code.leaves[-1].end_byte != len(code.source):  # or in a comment
        return False
    at = sum(leaf.end_byte <= code.cursor for leaf in code.leaves) - 1
    before = code.nesting[at][0] if at >= 0 else ""
    now, stray = code.nesting[-1]
    return stray or now.count("{") < before.count("{")


def _python(code: Code) -> bool:
    leaves = code.leaves
    if not leaves or leaves[-1].end_byte < len(code.source) or code.in_literal:  # a comment says nothing
        return False
    lines: list[tuple[int, int]] = []  # of each logical line where it starts, and its indentation
    end, opened, on_line = 0, "", False
    for leaf, (behind, _) in zip(leaves, code.nesting, strict=True):
        if not opened and (not lines or b"\n" in code.source[end : leaf.start_byte]):
            lines.append((leaf.start_byte, leaf.start_point[1]))
        end, opened = leaf.end_byte, behind
        if leaf.start_byte < code.cursor:
            on_line = bool(opened) or b"\n" not in code.source[end : code.cursor]
    before = [indentation for start, indentation in lines if start < code.cursor]
    after = [indentation for start, indentation in lines if start >= code.cursor]
    if not after or lines[-1][0] != leaves[-1].start_byte:
        return False
    return after[-1] < (before[-1] if on_line else after[0])
