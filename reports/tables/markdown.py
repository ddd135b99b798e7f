"""Markdown of names and texts that users chose: shown as they stand, whatever they hold.

A report is read on GitHub and in viewers that pass HTML on, so that a name must not be able to leave its code span, nor
a cell its table.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["escape_markdown", "escape_mentions", "markdown_code", "markdown_row"]

_ESCAPES = {**{character: f"\\{character}" for character in "\\`*_["}, "<": "&lt;", "@": "&#64;", "#": "&#35;"}


def escape_markdown(text: str) -> str:
    """Return Markdown that shows a text as it stands."""
    for character in "\\`*_<[":
        text = text.replace(character, f"\\{character}")
    return text


def escape_mentions(text: str) -> str:
    """Return Markdown of one line in which nothing is markup, nobody is mentioned and no issue linked."""
    flat = " ".join(text.split())
    return "".join(_ESCAPES.get(character, character) for character in flat)


def markdown_code(name: str) -> str:
    """Return a name as code of one line; one with a backtick as escaped text, since code has no escapes."""
    flat = " ".join(name.split())
    return escape_mentions(flat) if "`" in flat else f"`{flat}`"


def markdown_row(cells: Iterable[str]) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
