"""Groups of commands that are imported when they are called, so that ``harness --help`` is instant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["LazyGroup", "PlainCommand", "as_command"]

SETTINGS = {"help_option_names": ["-h", "--help"]}


def _without_kinds_of_flags(command: Any, ctx: Any) -> None:
    """Leave out of a help what kind of value a flag takes: none."""
    for option in command.get_params(ctx):
        if getattr(option, "is_flag", False):
            option.metavar = ""


class PlainCommand(TyperCommand):
    """A command whose help says of a flag that it is one by saying nothing."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        _without_kinds_of_flags(self, ctx)
        super().format_help(ctx, formatter)


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
        listed = {name: TyperCommand(name, rich_help_panel=self.panel(name)) for name in self.names()}
        self.commands = {**listed, **self.commands}

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        _without_kinds_of_flags(self, ctx)
        super().format_help(ctx, formatter)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return what is listed of a command."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.help is None:
            command.help = self.summary(cmd_name)
        return command

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
