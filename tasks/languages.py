"""Where a line of code ends, and where it may be cut: the facts of each programming language.

One definition of "line" serves the stop rule, the text that is scored and the references cut from raw
files, so that the three can never disagree. The definition is CodeXGLUE's, read from text instead of from
its own tokenizer's break tokens (microsoft/CodeXGLUE, Code-Code/CodeCompletion-line, README and
``code/run_lm.py``): Python ends at ``<EOL>``; Java ends at the first ``;`` or ``}``, which belong to the line,
or at ``{``, which does not. Two additions for models that were never trained on that format: a newline ends a
line too, and in Java a mark inside a string or character literal, or a comment, does not count.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import Any

from harness.errors import ConfigError

END_OF_LINE = "<EOL>"

MIN_TOKENS = 3
"""Shortest line that is completed, tokens of the language."""

# Stand where something was taken out; no source file holds these characters.
_COMMENT, _DOCSTRING = "\0", "\1"
_COMMENT_LINE = re.compile(r"^[ \t]*(?:\0[ \t]*)+(?:\n|\Z)", re.MULTILINE)
_COMMENT_TAIL = re.compile(r"[ \t]*\0[ \t]*$", re.MULTILINE)
_DOCSTRING_BEFORE_BODY = re.compile(r"^([ \t]*)\x01[ \t]*\n(?=(?:[ \t]*\n)*\1(?![ \t\n]))", re.MULTILINE)
_DOCSTRING_ALONE = re.compile(r"(?<=[ \t])\x01")

_LITERAL_TOKEN = r"<(?:STR|NUM|CHAR)_LIT(?::[^<>\n]*)?>"
_PREFIX = "(?:[rRbBuUfF][rRbBfF]?)?"
_STRING = r'"(?:\\.|[^"\\\n])*"|' + r"'(?:\\.|[^'\\\n])*'"
_TEXT = r'"""(?:\\.|[^\\])*?(?:"""|\Z)|' + r"'''(?:\\.|[^\\])*?(?:'''|\Z)"
_WORD_OR_OPERATOR = r"\d[\w.]*|\w+|[-+*/%&|^=<>!~]+|\.\.\.|::|[^\w\s]"
# A literal that the generated text has not closed yet runs to the end of the text or of the line.
_OPEN_STRING = r'"(?:\\.|[^"\\\n])*"?|' + r"'(?:\\.|[^'\\\n])*'?"
_OPEN_COMMENT = r"//[^\n]*|/\*(?:(?!\*/)[^\n])*(?:\*/)?"
_LONGEST_HEAD = 1 << 14
"""Characters in which a package is declared, licences and all."""
_OPENERS = {"comment": "/*", "text": '"'}
"""Prefix repeated on each line of a token that spans lines."""


@dataclass(frozen=True, slots=True)
class Token:
    """A lexical token of a document, by character offsets: newline, comment, text (may span lines) or code."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True)
class Language:
    """How one programming language is cut into lines.

    Attributes:
        name: as CodeBLEU and the hub datasets call it.
        line_marks: pattern of everything that matters when a line's end is searched: string literals and comments,
            which are stepped over, and the marks themselves, in a group named ``mark``.
        kept_marks: the marks that belong to the line they end.
        lexer: pattern with the groups of :attr:`Token.kind`; what matches none of them is white space.
        mark_characters: the characters that can be the last of a mark.
        docstrings: whether a ``text`` that stands as a statement is documentation.
        package: pattern of the declaration that says what a file belongs to, its name in a group named ``name``;
            ``None`` for a language without one.
    """

    name: str
    line_marks: re.Pattern[str]
    kept_marks: frozenset[str]
    lexer: re.Pattern[str]
    mark_characters: frozenset[str]
    docstrings: bool
    package: re.Pattern[str] | None = None

    def project(self, text: str) -> str | None:
        """Return the project that a document belongs to by its own words; ``None`` where it does not say.

        Of a Java package the first two components, which are the publisher's domain. Of CodeXGLUE's 1,600 dev rows
        1,158 have a package, of 65 such publishers (``org.apache`` 173 rows); a third component parts what is one
        project (``org.jamwiki.db`` and ``org.jamwiki.utils``, ``org.mozilla.gecko`` and ``org.mozilla.android``),
        and files that are not independent must not count as if they were. Two lump what one publisher has several of.
        """
        found = self.package.search(text[:_LONGEST_HEAD]) if self.package else None
        return ".".join(re.split(r"\s*\.\s*", found["name"])[:2]) if found else None

    def line_end(self, text: str, start: int = 0) -> int | None:
        """Return the offset where the line that runs at ``start`` ends, or ``None`` when it does not.

        ``start`` must lie outside literals and comments, or :meth:`open_line` stand before the text. Appending text
        never moves an end once found.
        """
        for match in self.line_marks.finditer(text, start):
            mark = match["mark"]
            if mark is not None:
                return match.end() if mark in self.kept_marks else match.start()
        return None

    def line(self, text: str) -> str:
        """Return the line that ``text`` begins with, without its end mark and outer white space."""
        return text[: self.line_end(text)].strip()

    def open_line(self, text: str) -> str:
        """Return what stands behind the last end mark of a text, which the literals behind it must be read with.

        A comment, or a string, that has spanned lines begins anew on the last one.
        """
        start = text.rfind("\n") + 1
        spans = (token for token in self.tokens(text) if token.kind in _OPENERS and token.start < start <= token.end)
        line = next((_OPENERS[token.kind] for token in spans), "") + text[start:]
        return line[max((match.end() for match in self.line_marks.finditer(line) if match["mark"]), default=0) :]

    def may_end_line(self, piece: str) -> bool:
        """Return whether a piece of text holds a character that can complete an end mark."""
        return not self.mark_characters.isdisjoint(piece)

    def tokens(self, text: str) -> list[Token]:
        """Return the lexical tokens of a document, in order, white space left out."""
        return [Token(match.start(), match.end(), match.lastgroup or "code") for match in self.lexer.finditer(text)]

    def code_lines(self, text: str) -> Iterator[list[Token]]:
        """Yield the tokens of each line of code; lines that are, or touch, a comment or a literal of lines are not."""
        line: list[Token] = []
        clean = True
        for token in [*self.tokens(text), Token(len(text), len(text), "newline")]:
            if token.kind == "newline":
                if clean and line:
                    yield line
                line, clean = [], True
            elif token.kind in _OPENERS:
                clean = False
            else:
                line.append(token)

    def without_comments(self, text: str) -> str:
        """Return a document without comments and docstrings; lines that held nothing else go with them.

        A docstring that is all there is of a body leaves ``pass`` behind.
        """
        kept: list[str] = []
        position = depth = 0
        starts_line = True
        for match in self.lexer.finditer(text):  # thousands of files are read: :meth:`tokens` takes twice as long
            kind = match.lastgroup
            is_docstring = kind == "text" and self.docstrings and starts_line and depth == 0
            if kind == "comment" or is_docstring:
                kept += [text[position : match.start()], _DOCSTRING if is_docstring else _COMMENT]
                position = match.end()
            elif not self.docstrings:
                continue
            elif kind == "newline":
                starts_line = text[match.start() - 1 : match.start()] != "\\"  # else the line goes on
            else:
                starts_line = False
                depth += (match[0] in "([{") - (match[0] in ")]}")
        marked = "".join([*kept, text[position:]])
        marked = _COMMENT_LINE.sub("", marked)
        marked = _COMMENT_TAIL.sub("", marked).replace(_COMMENT, "")
        marked = _DOCSTRING_BEFORE_BODY.sub("", marked)
        return _DOCSTRING_ALONE.sub("pass", marked).replace(_DOCSTRING, "").lstrip("\n")


PYTHON = Language(
    name="python",
    line_marks=re.compile(r"(?P<mark>\n|<EOL>)"),
    kept_marks=frozenset(),
    lexer=re.compile(
        r"(?P<newline>\n|<EOL>)"
        r"|(?P<comment>\#[^\n]*)"
        rf"|(?P<text>{_PREFIX}(?:{_TEXT}))"
        rf"|(?P<code>{_LITERAL_TOKEN}|{_PREFIX}(?:{_STRING})|{_WORD_OR_OPERATOR})",
        re.DOTALL,
    ),
    mark_characters=frozenset("\n>"),
    docstrings=True,
)

JAVA = Language(
    name="java",
    line_marks=re.compile(rf"{_OPEN_STRING}|{_OPEN_COMMENT}|(?P<mark>[\n;{{}}])"),
    kept_marks=frozenset(";}"),
    lexer=re.compile(
        r"(?P<newline>\n)"
        r"|(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))"
        rf"|(?P<text>{_TEXT})"
        rf"|(?P<code>{_LITERAL_TOKEN}|{_STRING}|{_WORD_OR_OPERATOR})",
        re.DOTALL,
    ),
    mark_characters=frozenset("\n;{}"),
    docstrings=False,
    package=re.compile(r"(?:^|[\s;/])package\s+(?P<name>\w+(?:\s*\.\s*\w+)*)\s*;"),
)

CSHARP = replace(JAVA, name="csharp", package=None)
"""As far as lines go; its verbatim strings are not known."""

TYPESCRIPT = replace(JAVA, name="typescript", package=None)
"""As far as lines go; its template strings are not known."""


@lru_cache(maxsize=8)
def grammar(language: str) -> Any:
    """Return tree-sitter's grammar of a language; one that is not installed, or does not fit, is refused."""
    from tree_sitter import Language

    package = f"tree-sitter-{language.replace('_', '-')}"
    try:
        module = import_module(package.replace("-", "_"))
    except ImportError:
        raise ConfigError(f"the grammar of {language} is not installed. Run `pip install {package}`.") from None
    found = getattr(module, "language", None) or getattr(module, f"language_{language}")  # PHP's has two
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of those that give an address
            return Language(found())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the grammar {package} cannot be read: the installed tree-sitter does not fit it ({error}). "
            "Run `pip install 'tree-sitter>=0.25'`."
        ) from None


@lru_cache(maxsize=8)
def parser(language: str) -> Any:
    """Return the parser of a language; raises as :func:`grammar`."""
    from tree_sitter import Parser

    return Parser(grammar(language))
