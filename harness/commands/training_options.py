"""What ``harness trace`` and ``harness train`` share: options, checks of their values, and how they speak."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from harness.commands.console import escape, stderr
from harness.errors import ConfigError

__all__ = [
    "Artefacts",
    "Model",
    "Sources",
    "Tasks",
    "check_choice",
    "check_least",
    "check_seed",
    "check_split",
    "say",
    "show_progress",
]

Model = Annotated[str, typer.Option(help="Catalogue name, hub id or folder.")]
Tasks = Annotated[list[str] | None, typer.Option(help="py150, javacorpus. Repeatable. Default: both.")]
Sources = Annotated[
    list[str] | None, typer.Option(help="embedded, hub, or PATH. Repeatable; each in equal shares. Default: embedded.")
]
Artefacts = Annotated[str | None, typer.Option(help="Folder of `harness train`, or a shipped set.")]


def check_choice(flag: str, value: str, allowed: tuple[str, ...]) -> Any:
    """Return the value of a flag, refused with :class:`ConfigError` unless it is allowed."""
    if value not in allowed:
        raise ConfigError(f"--{flag} '{value}' is unknown. Use {', '.join(allowed)}.")
    return value


def check_least(*flags: tuple[str, int, int]) -> None:
    """Raise :class:`ConfigError` where a flag's value is below its least: (name, value, least) each."""
    for flag, value, least in flags:
        if value < least:
            raise ConfigError(f"--{flag} {value} is too small; at least {least}.")


def check_seed(seed: int) -> None:
    """Raise :class:`ConfigError` for what numpy and torch do not both take."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed {seed} is out of range; 0 to 4294967295.")


def check_split(name: str) -> Any:
    """Return the part of a dataset with this name, refused with :class:`ConfigError` when there is none."""
    if name not in ("train", "validation", "test"):
        raise ConfigError(f"--split '{name}' is unknown. Use train, validation or test.")
    return name


def say(text: str) -> None:
    """Tell the user something that is no result."""
    stderr().print(f"[dim]{escape(text)}[/]", soft_wrap=True)


def show_progress() -> Any:
    """Return a context manager that shows how far long work is, and the time left."""
    from harness.commands.progress import TrainingProgress

    return TrainingProgress(stderr())
