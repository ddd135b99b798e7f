"""Groups of commands that are imported when they are called, and the layout of every ``--help``.

What is said of an option comes from typer's records. Typer's own drawing of them is not used: it takes ``[run]`` for
markup and leaves it out, and cuts words that are wider than what six columns leave of a terminal.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from harness.appearance.terminal import paragraphs
from harness.commands.console import results_alone, stdout
from harness.errors import ConfigError

if TYPE_CHECKING:
    from rich.panel import Panel

Rows = Sequence[tuple[str, str]]
"""Name and what is said of it."""

SETTINGS = {"help_option_names": ["-h", "--help"]}

_FLAG = r"(?<!\S)--?\w[\w-]*"


def write_help(command: Any, ctx: Any, listed: Mapping[str, Rows], examples: Mapping[str, str]) -> None:
    """Print the help of a command; of a group also title → commands, and title → an example below those."""
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
    if command.epilog:  # an example to paste, which is never wrapped
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


class PlainCommand(TyperCommand):
    """A command whose help is what it declares, word for word, and that takes no empty text for a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the arguments."""
        has_empty = any(word == "" or (word.startswith("--") and word.endswith("=")) for word in args)
        rest = super().parse_args(ctx, args)
        for param in self.params if has_empty else ():
            value = ctx.params.get(param.name)
            given = ctx.get_parameter_source(param.name).name == "COMMANDLINE"
            for empty in (
                one for one in (value if isinstance(value, list | tuple) else [value]) if one in (Path(), "")
            ):
                named = param.opts[0] if param.opts[0].startswith("-") else param.metavar or param.name
                what = (
                    "Name a file or folder; . is this one." if empty == Path() else "Name something, or leave it out."
                )
                if given:
                    raise ConfigError(f"{named} is empty. {what}")
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        with results_alone():
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        write_help(self, ctx, {}, {})


class LazyGroup(TyperGroup):
    """A group that knows its commands by name, reads their one-line helps, and loads the one that is called."""

    def names(self) -> Sequence[str]:
        """Return the names, in the order they are listed in."""
        raise NotImplementedError

    def summary(self, name: str) -> str:
        """Return a command's help in one line."""
        raise NotImplementedError

    def load(self, name: str) -> Any:
        """Return what is behind a name, for :func:`as_command`."""
        raise NotImplementedError

    def example(self, name: str) -> str:
        """Return a command line that calls it, for its help."""
        raise NotImplementedError

    def panel(self, name: str) -> str | None:
        """Return the title of the panel in which a command is listed; ``None`` for the one of all commands."""
        return None

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {**{name: TyperCommand(name) for name in self.names()}, **self.commands}

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, and the commands' own in a line each."""
        panels: dict[str, list[tuple[str, str]]] = {}
        examples: dict[str, str] = {}
        for name in self.names():
            title = self.panel(name)
            panels.setdefault(title or "Commands", []).append((name, self.summary(name)))
            if title:
                examples.setdefault(title, self.example(name))
        write_help(self, ctx, panels, examples)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Load the command that is called."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.names():
            with results_alone():
                loaded = self.load(name)
            command = as_command(name, loaded, self.example(name))
        return name, command, rest


def as_command(name: str, thing: Any, example: str = "") -> Any:
    """Return typer's command of a function, or of a class of groups with its docstring as help; an example is below."""
    epilog = f"Example: {example}" if example else None
    plain: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False}
    if isinstance(thing, type):
        app = typer.Typer(name=name, cls=thing, help=thing.__doc__, context_settings=SETTINGS, epilog=epilog, **plain)
        app.callback()(lambda: None)
    else:
        app = typer.Typer(**plain)
        app.command(name, cls=PlainCommand, context_settings=SETTINGS, epilog=epilog)(thing)
    return typer.main.get_command(app)
