"""Docstrings as text for a terminal: paragraphs that fit its width, without the marks of their source."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["paragraphs"]

_ROLE = re.compile(r":\w+:`~?(?:[^`<]*\.)?([^`<.]+)`")
_LITERAL = re.compile(r"``([^`]*)``")
_APART = re.compile(r"\s|[-*•] |\d+\. ")
"""Marks of a line that does not continue the one before: indentation, or a list's mark."""


def paragraphs(docstring: str) -> Iterator[str]:
    """Yield the paragraphs of a cleaned docstring, each one line; indented lines and items of lists stay apart.

    Literals lose their backticks, and references their role and module.
    """
    for block in re.split(r"\n\s*\n", docstring.strip()):
        lines: list[str] = []
        for line in block.splitlines():
            if lines and not _APART.match(line):
                lines[-1] = f"{lines[-1]} {line}"
            else:
                lines.append(line)
        shown = "\n".join(_LITERAL.sub(r"\1", _ROLE.sub(r"\1", line)) for line in lines)
        yield shown[:-1] if shown.endswith("::") else shown  # what an example follows
