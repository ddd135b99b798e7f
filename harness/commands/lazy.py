"""Groups of commands that are imported when they are called, so that ``harness --help`` is instant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["LazyGroup", "as_command"]

SETTINGS = {"help_option_names": ["-h", "--help"]}


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

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {**{name: TyperCommand(name) for name in self.names()}, **self.commands}

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
            command = as_command(name, self.load(name))
        return name, command, rest


def as_command(name: str, thing: Any) -> Any:
    """Return typer's command of a function, or of a class of groups with its docstring as help."""
    if isinstance(thing, type):
        app = typer.Typer(
            name=name, cls=thing, help=thing.__doc__, context_settings=SETTINGS, add_completion=False,
            pretty_exceptions_enable=False,
        )  # fmt: skip
        app.callback()(lambda: None)
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(name, context_settings=SETTINGS)(thing)
    return typer.main.get_command(app)
