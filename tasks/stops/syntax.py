"""The base of rules that parse: the code so far as tokens of its grammar, with their brackets.

Code is parsed from the beginning of the prompt, or of the file that a gap is in. A prompt that was cut at its left may
begin anywhere: tree-sitter recovers, and the rules look only at what stands around the cursor. ``<EOL>`` of CodeXGLUE's
rows counts as a newline.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from harness.contracts import Cursor, ModelInfo, RowStop, Stop
from tasks.grammars import parser
from tasks.languages import END_OF_LINE
from tasks.stops.language import language_of

__all__ = ["CLOSERS", "LANGUAGES", "Code", "SyntaxStop"]

LANGUAGES = ("java", "python")
CLOSERS = {"(": ")", "[": "]", "{": "}"}
OPENERS = {close: opening for opening, close in CLOSERS.items()}

_WHOLE = frozenset({"string", "string_literal", "character_literal", "text_block"})
_COMMENTS = frozenset({"comment", "line_comment", "block_comment"})


class Code:
    """Code up to some character.

    Args:
        text: the code.
        cursor: bytes of it, in UTF-8, before the cursor.
        language: a name of :data:`LANGUAGES`.
    """

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
    """A rule that parses the code.

    A subclass says whether the code ends at the last of some characters (:meth:`ends`), and of which characters it
    wants to be asked.
    """

    rule: ClassVar[str]

    language: Annotated[
        Literal["", "java", "python"], Field(description="of the code; the task's where it is left out")
    ] = ""

    def check(self, model: ModelInfo, language: str) -> None:
        """The language must have a grammar, which must be installed."""
        parser(language_of(self.rule, self.language, language, LANGUAGES))

    def start(self, cursor: Cursor) -> RowStop:
        """Read the completion behind the text before the cursor."""
        language = self.language or cursor.language
        return _Parsed(cursor, language, lambda text, place: self.asked(text, place, language), self.ends)

    def asked(self, text: str, place: int, language: str) -> bool:
        """Return whether the completion may be over with the character at a place of its text."""
        raise NotImplementedError

    @abstractmethod
    def ends(self, code: Code) -> bool:
        """Return whether the completion is over with the last character of the code."""


class _Parsed(RowStop):
    """Asks of every prefix of the text that may be the end; what was told of one is kept."""

    def __init__(
        self, cursor: Cursor, language: str, asked: Callable[[str, int], bool], ends: Callable[[Code], bool]
    ) -> None:
        self._cursor, self._language, self._asked, self._ends = cursor, language, asked, ends
        self._told: dict[str, bool] = {}

    def over(self, token_ids: Sequence[int]) -> bool:
        text = self._cursor.text(token_ids).replace(END_OF_LINE, "\n")
        return any(self._tell(text[: place + 1]) for place in range(len(text)) if self._asked(text, place))

    def _tell(self, text: str) -> bool:
        if text not in self._told:
            before = self._before
            code = Code(before + text, len(before.encode(errors="replace")), self._language)
            self._told[text] = self._ends(code)
        return self._told[text]

    @cached_property
    def _before(self) -> str:
        return self._cursor.before.replace(END_OF_LINE, "\n")
