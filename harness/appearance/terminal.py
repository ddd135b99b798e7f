"""Text in a terminal: consoles on which nothing can hide or speak to the terminal, whoever wrote the text.

``escape`` is for text inside markup, :class:`Text` and :class:`Line` for cells and lines, so that columns are as wide
as what is shown. The console looks at everything once more when it prints it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Self

import rich.console
import rich.text
from rich.markup import escape as _escaped
from rich.segment import Segment

from harness.appearance.visible_text import visible


def escape(text: object) -> str:
    """Return a text, or what stands for something as text, that rich prints as it stands."""
    return _escaped(visible(str(text)))


class Text(rich.text.Text):
    """rich's text, of characters that are seen."""

    __slots__ = ()

    def __init__(self, text: str = "", style: Any = "", **settings: Any) -> None:
        super().__init__(visible(text), style, **settings)

    def append(self, text: rich.text.Text | str, style: Any = None) -> Self:
        """Add a text to its end."""
        super().append(visible(text) if isinstance(text, str) else text, style)
        return self


class Line(Text):
    """A text of one line, whatever line breaks it came with."""

    __slots__ = ()

    def __init__(self, text: str = "", style: Any = "", **settings: Any) -> None:
        super().__init__(" ".join(visible(text).splitlines()), style, **settings)


class Console(rich.console.Console):
    """rich's console, which prints no character that a terminal would obey or hide."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(emoji=False, **settings)

    def render(self, renderable: Any, options: rich.console.ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of what is printed; those that control the terminal are rich's own."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or (text.isascii() and text.isprintable()) or text == "\n":
                yield segment
            else:
                yield Segment(visible(text), segment.style)


_ROLE = re.compile(r":\w+:`~?(?:[^`<]*\.)?([^`<.]+)`")
_LITERAL = re.compile(r"``([^`]*)``")
_APART = re.compile(r"\s|[-*•] |\d+\. ")
"""Marks of a line that does not continue the one before: indentation, or a list's mark."""


def paragraphs(docstring: str) -> Iterator[str]:
    """Yield the paragraphs of a cleaned docstring, each one line; indented lines and items of lists stay apart."""
    for block in re.split(r"\n\s*\n", docstring.strip()):
        lines: list[str] = []
        for line in block.splitlines():
            if lines and not _APART.match(line):
                lines[-1] = f"{lines[-1]} {line}"
            else:
                lines.append(line)
        shown = "\n".join(_LITERAL.sub(r"\1", _ROLE.sub(r"\1", line)) for line in lines)
        yield shown[:-1] if shown.endswith("::") else shown  # what an example follows
