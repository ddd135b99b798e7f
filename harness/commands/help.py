"""The layout of ``--help``: panels of two columns in which every word that a command declares can be read.

What is said of an option comes from typer's records. Typer's own drawing of them is not used: it takes ``[run]`` for
markup and leaves it out, and cuts words that are wider than what six columns leave of a terminal.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.appearance.docstrings import paragraphs
from harness.commands.console import stdout

if TYPE_CHECKING:
    from rich.panel import Panel

__all__ = ["Rows", "write_help"]

Rows = Sequence[tuple[str, str]]
"""Name and what is said of it."""

_FLAG = r"(?<!\S)--?\w[\w-]*"


def write_help(command: Any, ctx: Any, listed: Mapping[str, Rows], examples: Mapping[str, str]) -> None:
    """Print the help of a command.

    Args:
        command: typer's command; its epilog, an example to paste, is never wrapped.
        ctx: what it is called in.
        listed: title → commands, of a group.
        examples: title → a command line that is shown below those commands.
    """
    from harness.appearance.terminal import Text

    console = stdout()
    panels = {**_parameters(command, ctx), **listed}
    widest = max(len(name) for rows in panels.values() for name, _ in rows)
    console.print()
    console.print(Text(command.get_usage(ctx), style="bold"))
    for paragraph in paragraphs(inspect.cleandoc(command.help or "")):
        console.print()
        console.print(Text(paragraph))
    console.print()
    for title, rows in panels.items():
        console.print(_panel(title, rows, min(widest, console.width * 2 // 5), examples.get(title, "")))
    if command.epilog:
        console.print()
        console.print(Text(command.epilog), soft_wrap=True)


def _parameters(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return panel → its parameters: arguments first, then options without a panel of their own."""
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None:  # hidden
            continue
        name, said = record
        is_argument = param.param_type_name == "argument"
        if is_argument:
            name = name.partition(" <")[0]  # its name says what it takes
        title = getattr(param, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
        panels.setdefault(title, []).append((name.replace(" / ", "\n"), " ".join(said.split())))
    return {title: rows for title, rows in panels.items() if rows}


def _panel(title: str, rows: Rows, width: int, example: str) -> Panel:
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table

    from harness.appearance.terminal import Text

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    table.add_column(width=width, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for name, said in rows:
        shown = Text(name, style="" if name.startswith("-") else "bold cyan")
        shown.highlight_regex(_FLAG, "bold cyan")
        table.add_row(shown, Text(next(paragraphs(said), "")))
    below = [Text(f"Example: {example}", style="dim")] if example else []
    return Panel(Group(table, *below), title=Text(title), title_align="left", border_style="dim")
