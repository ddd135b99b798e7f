"""Where commands speak: results on stdout, progress, warnings and refusals on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from harness.commands.progress import TrainingProgress

__all__ = ["escape", "log_to", "refuse", "say", "show_progress", "stderr", "stdout"]


def stdout() -> Console:
    """Return the console of results."""
    from rich.console import Console

    return Console(emoji=False)


def stderr() -> Console:
    """Return the console of everything else."""
    from rich.console import Console

    return Console(stderr=True, emoji=False)


def escape(text: str) -> str:
    """Return a text that rich prints as it stands."""
    from rich.markup import escape as escaped

    return escaped(text)


def refuse(message: str, commands: Iterable[str] = ()) -> None:
    """Print one line, whatever line breaks a file name or another library brought into the message.

    Args:
        message: what is refused, and why.
        commands: the cure, each printed on a line of its own that a shell takes as it stands.
    """
    console = stderr()
    console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", highlight=False, soft_wrap=True)
    for command in commands:
        console.print(f"  {escape(command)}", highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Tell the user something that is no result."""
    stderr().print(f"[dim]{escape(text)}[/]", soft_wrap=True)


def show_progress() -> TrainingProgress:
    """Return a context manager that shows how far long work is, and the time left."""
    from harness.commands.progress import TrainingProgress

    return TrainingProgress(stderr())


def log_to(console: Console) -> None:
    """Send warnings to the console that draws the progress bar, so that neither overwrites the other."""
    import logging
    import traceback

    class OneLine(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = escape(" ".join(record.getMessage().splitlines()))
            console.print(f"[yellow]{record.levelname.lower()}:[/] {message}", highlight=False, soft_wrap=True)
            if record.exc_info:
                lines = "".join(traceback.format_exception(*record.exc_info))
                console.print(escape(lines), highlight=False, soft_wrap=True)

    logging.basicConfig(level=logging.WARNING, handlers=[OneLine()])
