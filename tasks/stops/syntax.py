"""Rules that parse: a completion ends with its block or statement; and where the functions of a document end.

Code is parsed from the beginning of the prompt, or of the file that a gap is in. A prompt that was cut at its left may
begin anywhere: tree-sitter recovers, and the rules look only at what stands around the cursor. ``<EOL>`` of CodeXGLUE's
rows counts as a newline.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from harness.contracts import Cursor, ModelInfo, RowStop, Stop
from tasks.languages import END_OF_LINE, parser
from tasks.stops.line import language_of

LANGUAGES = ("java", "python")
CLOSERS = {"(": ")", "[": "]", "{": "}"}
OPENERS = {close: opening for opening, close in CLOSERS.items()}

_WHOLE = frozenset({"string", "string_literal", "character_literal", "text_block"})
_COMMENTS = frozenset({"comment", "line_comment", "block_comment"})


class Code:
    """Code up to some character, with the bytes of it, in UTF-8, that stand before the cursor."""

    def __init__(self, text: str, cursor: int, language: str) -> None:
        self.source, self.cursor, self.language = text.encode(errors="replace"), cursor, language
        self.root: Any = parser(language).parse(self.source).root_node

    @cached_property
    def leaves(self) -> Sequence[Any]:
        """Tokens in order: string literals whole, no comments, nothing that the parser only wished for."""
        found, waiting = [], [self.root]
        while waiting:
            node = waiting.pop()
            if node.type in _COMMENTS:
                continue
            if node.children and node.type not in _WHOLE:
                waiting.extend(reversed(node.children))
            elif node.end_byte > node.start_byte:
                found.append(node)
        return found

    @cached_property
    def nesting(self) -> Sequence[tuple[str, bool]]:
        """For each leaf the brackets that are open behind it, and whether it closes one that is not there.

        What a closing bracket does not match, inside the one that it does, is taken for closed.
        """
        found, opened = [], ""
        for leaf in self.leaves:
            stray = False
            if leaf.type in CLOSERS:
                opened += leaf.type
            elif leaf.type in OPENERS:
                place = opened.rfind(OPENERS[leaf.type])
                stray, opened = place < 0, opened[:place] if place >= 0 else opened
            found.append((opened, stray))
        return found

    @property
    def ends_with_token(self) -> bool:
        """Whether its last character is a token's, and in no literal or comment."""
        return bool(self.leaves) and not self.in_literal and self.leaves[-1].end_byte == len(self.source)

    @property
    def in_literal(self) -> bool:
        """Whether a string or a comment was opened and not closed.

        A string that is closed is one leaf; so is one whose end the parser wished for, to go on behind it.
        """
        pairs = zip(self.leaves, self.leaves[1:], strict=False)
        comment = any((a.type, b.type) == ("/", "*") and a.end_byte == b.start_byte for a, b in pairs)
        return comment or any(
            leaf.type in ("string_start", '"', "'", '"""')
            or (leaf.type in _WHOLE and any(child.is_missing for child in leaf.children[-1:]))
            for leaf in self.leaves
        )


@dataclass(frozen=True)
class SyntaxStop(Stop):
    """A rule that parses the code."""

    rule: ClassVar[str]

    language: Annotated[
        Literal["", "java", "python"], Field(description="of the code; the task's where it is left out")
    ] = ""

    def check(self, model: ModelInfo, language: str) -> None:
        parser(language_of(self.rule, self.language, language, LANGUAGES))

    def start(self, cursor: Cursor) -> RowStop:
        return _Parsed(self, cursor)

    @abstractmethod
    def asked(self, text: str, place: int, language: str) -> bool:
        """Return whether the completion may be over with the character at a place of its text."""

    @abstractmethod
    def ends(self, code: Code) -> bool:
        """Return whether the completion is over with the last character of the code."""


class _Parsed(RowStop):
    """Asks of every prefix of the text that may be the end; what was told of one is kept."""

    def __init__(self, rule: SyntaxStop, cursor: Cursor) -> None:
        self._rule, self._cursor, self._language = rule, cursor, rule.language or cursor.language
        self._before = cursor.before.replace(END_OF_LINE, "\n")
        self._told: dict[str, bool] = {}

    def over(self, token_ids: Sequence[int]) -> bool:
        text = self._cursor.text(token_ids).replace(END_OF_LINE, "\n")
        places = (place for place in range(len(text)) if self._rule.asked(text, place, self._language))
        return any(self._tell(text[: place + 1]) for place in places)

    def _tell(self, text: str) -> bool:
        if text not in self._told:
            cursor = len(self._before.encode(errors="replace"))
            self._told[text] = self._rule.ends(Code(self._before + text, cursor, self._language))
        return self._told[text]


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
        if language == "java":
            return text[place] == "}"
        before = text[:place].rpartition("\n")
        return bool(before[1]) and not before[2].strip() and not text[place].isspace()

    def ends(self, code: Code) -> bool:
        return _java_block(code) if code.language == "java" else _python_block(code)


def _java_block(code: Code) -> bool:
    if not code.ends_with_token:
        return False
    at = sum(leaf.end_byte <= code.cursor for leaf in code.leaves) - 1
    before = code.nesting[at][0] if at >= 0 else ""
    now, stray = code.nesting[-1]
    return stray or now.count("{") < before.count("{")


def _python_block(code: Code) -> bool:
    leaves = code.leaves
    if not code.ends_with_token:
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


_FUNCTIONS = frozenset({"function_definition", "method_declaration", "constructor_declaration"})


def function_ends(source: str, ends: Sequence[int], language: str) -> list[float]:
    """Return for places of a document, bytes of its UTF-8 before each, whether a function ends there.

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
        return text[place] in (";}" if language == "java" else ";\n")

    def ends(self, code: Code) -> bool:
        return _java(code) if code.language == "java" else _python(code)


def _java(code: Code) -> bool:
    if not code.ends_with_token:
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
