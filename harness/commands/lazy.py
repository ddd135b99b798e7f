"""Groups of commands that are imported when they are called, so that ``harness --help`` is instant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from harness.commands.help import write_help
from harness.errors import ConfigError

__all__ = ["LazyGroup", "PlainCommand", "as_command"]

SETTINGS = {"help_option_names": ["-h", "--help"]}


class PlainCommand(TyperCommand):
    """A command whose help is what it declares, word for word, and that takes no empty path for the working folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the arguments."""
        has_empty = any(word == "" or (word.startswith("--") and word.endswith("=")) for word in args)
        rest = super().parse_args(ctx, args)
        for param in self.params if has_empty else ():
            value = ctx.params.get(param.name)
            if Path() in (value if isinstance(value, list | tuple) else [value]):
                named = param.opts[0] if param.opts[0].startswith("-") else param.metavar or param.name
                raise ConfigError(f"{named} is empty. Name a file or folder; . is this one.")
        return rest

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

    def panel(self, name: str) -> str | None:
        """Return the title of the panel in which a command is listed; ``None`` for the one of all commands."""
        return None

    def example(self, name: str) -> str:
        """Return a command line that calls it, for its help; empty for none."""
        return ""

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
            command = as_command(name, self.load(name), self.example(name))
        return name, command, rest


def as_command(name: str, thing: Any, example: str = "") -> Any:
    """Return typer's command of a function, or of a class of groups with its docstring as help; an example is below."""
    epilog = f"Example: {example}" if example else None
    if isinstance(thing, type):
        app = typer.Typer(
            name=name, cls=thing, help=thing.__doc__, context_settings=SETTINGS, add_completion=False,
            pretty_exceptions_enable=False, epilog=epilog,
        )  # fmt: skip
        app.callback()(lambda: None)
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(name, cls=PlainCommand, context_settings=SETTINGS, epilog=epilog)(thing)
    return typer.main.get_command(app)
