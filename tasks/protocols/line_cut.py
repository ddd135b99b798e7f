"""Cut a document inside a line, as CodeXGLUE cut its test set: a random token of a random line.

Lines that are, or touch, a comment or a string that spans lines are left out, as are lines of fewer than
three tokens and answers without a single name, number or string: completing those measures prose or luck.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from tasks.languages import Language, Token

__all__ = ["MIN_TOKENS", "cut_line"]

MIN_TOKENS = 3
"""Shortest line that may be cut, tokens of the language."""

_WORD = re.compile(r"\w")


def cut_line(text: str, language: Language, chance: random.Random) -> tuple[str, str] | None:
    """Return the text before a random cut and the rest of the line, or ``None`` when no line can be cut.

    The cut lies behind a token, so the rest begins with the white space that a tokenizer would put into its first
    token. The rest ends where :meth:`Language.line_end` says.
    """
    lines = list(_code_lines(text, language))
    chance.shuffle(lines)
    for line in lines:
        cuts = [token.end for token in line[:-1]]
        chance.shuffle(cuts)
        for cut in cuts:
            end = language.line_end(text, cut)
            rest = text[cut:end]
            if _WORD.search(rest):
                return text[:cut], rest
    return None


def _code_lines(text: str, language: Language) -> Iterator[list[Token]]:
    line: list[Token] = []
    clean = True
    for token in [*language.tokens(text), Token(len(text), len(text), "newline")]:
        if token.kind == "newline":
            if clean and len(line) >= MIN_TOKENS:
                yield line
            line, clean = [], True
        elif token.kind in ("comment", "text"):
            clean = False
        else:
            line.append(token)
