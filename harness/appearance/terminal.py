"""Text in a terminal: consoles on which nothing can hide or speak to the terminal, whoever wrote the text.

``escape`` is for text inside markup, :class:`Text` and :class:`Line` for cells and lines, so that columns are as wide
as what is shown. The console looks at everything once more when it prints it: no way to the screen avoids that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import rich.console
import rich.text
from rich.markup import escape as _escaped
from rich.segment import Segment

from harness.appearance.visible_text import visible

__all__ = ["Console", "Line", "Text", "escape"]


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
