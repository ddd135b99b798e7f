"""Markdown of names and texts that others chose: shown as they stand, whatever they hold.

A report is read on GitHub and in viewers that pass HTML on, so that a name must not be able to leave its code span, nor
a cell its table; as a comment it must not mention anybody.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.appearance.visible_text import one_line

__all__ = ["escape_markdown", "markdown_code", "markdown_row"]

_ESCAPES = {
    **{character: f"\\{character}" for character in "\\`*_[~$"},
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "@": "&#64;",
    "#": "&#35;",
}


def escape_markdown(text: str) -> str:
    """Return Markdown of one line in which nothing is markup, nobody is mentioned and no issue linked."""
    return "".join(_ESCAPES.get(character, character) for character in one_line(text))


def markdown_code(name: str) -> str:
    """Return a name as code of one line; one with a backtick as escaped text, since code has no escapes."""
    flat = one_line(name)
    return f"`{flat}`" if flat and "`" not in flat else escape_markdown(flat)


def markdown_row(cells: Iterable[str]) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
