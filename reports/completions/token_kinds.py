"""The kind of a generated token, by a small lexer that knows nothing of the prompt: good for distributions.

A token belongs to the lexeme in which its first character that is not white space stands. Literals that CodeXGLUE
replaced (``<STR_LIT>``, ``<NUM_LIT:1>``, ``<EOL>``) count as what they stand for.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from functools import cache

KINDS = ("identifier", "keyword", "operator", "number", "string", "comment", "white space")
"""In the order they are shown; ``operator`` includes punctuation."""

_JAVA = """
abstract assert boolean break byte case catch char class const continue default do double else enum extends false final
finally float for goto if implements import instanceof int interface long native new null package private protected
public return short static strictfp super switch synchronized this throw throws transient true try void volatile while
"""
_KEYWORDS = {"java": frozenset(_JAVA.split()), "python": frozenset(keyword.kwlist)}
_COMMENTS = {"java": r"//[^\n]*|/\*.*?(?:\*/|\Z)", "python": r"\#[^\n]*"}
_STRINGS = {
    "java": r'"""(?:\\.|.)*?(?:"""|\Z)|"(?:\\.|[^"\\\n])*(?:"|(?=\n)|\Z)|\'(?:\\.|[^\'\\\n])*(?:\'|(?=\n)|\Z)',
    "python": r'(?i:\b(?:[rbfu]|rb|br|rf|fr))?(?:"""(?:\\.|.)*?(?:"""|\Z)|\'\'\'(?:\\.|.)*?(?:\'\'\'|\Z)|'
    r'"(?:\\.|[^"\\\n])*(?:"|(?=\n)|\Z)|\'(?:\\.|[^\'\\\n])*(?:\'|(?=\n)|\Z))',
}


@cache
def _lexer(language: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?P<space>\s+|<\s?(?:EOL|INDENT|DEDENT)\s?>)"
        rf"|(?P<string><(?:STR|CHAR)_LIT(?::[^>\n]*)?>|{_STRINGS[language]})"
        rf"|(?P<comment>{_COMMENTS[language]})"
        rf"|(?P<number><NUM_LIT(?::[^>\n]*)?>|(?:\d|\.\d)(?:[\w.]|(?<=[eEpP])[+-])*)"
        rf"|(?P<word>[^\W\d]\w*|\$\w+)"
        rf"|(?P<operator>.)",
        re.DOTALL,
    )


def kinds_of(token_texts: Sequence[str], language: str) -> list[str | None]:
    """Return the kind of each token of a completion, one of :data:`KINDS`.

    ``None`` for a token that adds no text (it ends inside a character), and for all of them in a language that is
    neither ``python`` nor ``java``.
    """
    if language not in _KEYWORDS:
        return [None] * len(token_texts)
    text = "".join(token_texts)
    of_character: list[str] = []
    for match in _lexer(language).finditer(text):
        group, lexeme = match.lastgroup or "operator", match.group()
        if group == "word":
            group = "keyword" if lexeme in _KEYWORDS[language] else "identifier"
        of_character.extend(["white space" if group == "space" else group] * len(lexeme))
    kinds: list[str | None] = []
    start = 0
    for piece in token_texts:
        first = start + len(piece) - len(piece.lstrip())
        first = min(first, start + len(piece) - 1)
        kinds.append(of_character[first] if piece else None)
        start += len(piece)
    return kinds
