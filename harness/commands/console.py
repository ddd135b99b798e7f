"""Where commands speak: results on stdout, all else on stderr, as visible text whoever wrote it."""

from __future__ import annotations

import logging
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from harness.appearance.visible_text import escape_json, json_text, one_line, visible

if TYPE_CHECKING:
    from harness.appearance.terminal import Console
    from harness.commands.progress import TrainingProgress
    from reports.tables.table import Part

LISTED = 20
"""Refusals that are printed one by one."""


_results: list[TextIO] = []


@contextmanager
def results_alone() -> Iterator[None]:
    """Keep standard output for results: what anybody else prints, a plug-in say, goes to standard error."""
    _results.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()


def stdout() -> Console:
    """Return the console of results."""
    from harness.appearance.terminal import Console

    return Console(file=_results[-1] if _results else None)


def stderr() -> Console:
    """Return the console of everything else."""
    from harness.appearance.terminal import Console

    return Console(stderr=True)


def escape(text: object) -> str:
    """Return a text, or what stands for something as text, that rich prints as it stands."""
    from harness.appearance.terminal import escape as escaped

    return escaped(text)


def note(text: str) -> None:
    """Print a line of results that holds names of others, as wide as it is."""
    stdout().print(escape(one_line(text)), highlight=False, soft_wrap=True)


def write(text: str, end: str = "\n") -> None:
    """Print a document to stdout, its lines as wide as they are."""
    print(visible(text), end=end, file=_results[-1] if _results else None)


def write_json(document: object, **how: Any) -> None:
    """Print a JSON document to stdout: text, or what :func:`json_text` makes one of."""
    write(escape_json(document) if isinstance(document, str) else json_text(document, **how))


def print_tables(parts: Iterable[Part], width: int | None = None) -> None:
    """Print tables to stdout, no wider than asked for."""
    from reports.tables.writers import to_terminal

    console = stdout()
    console.print(to_terminal(parts), width=width and min(width, console.width), highlight=width is None)


def refuse(message: str, commands: Iterable[str] = ()) -> None:
    """Print a refusal in one line, and the commands that cure it on lines that a shell takes as they stand."""
    console = stderr()
    tell(console, "error", message, "bold red")
    for command in commands:
        console.print(f"  {escape(command)}", highlight=False, soft_wrap=True)


def tell(console: Console, mark: str, text: str, style: str = "yellow") -> None:
    """Print one line that a mark begins, whatever the text holds."""
    console.print(f"[{style}]{escape(one_line(mark))}:[/] {escape(one_line(text))}", highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Tell the user something that is no result."""
    stderr().print(f"[dim]{escape(one_line(text))}[/]", highlight=False, soft_wrap=True)


def show_progress(*, timer: bool = True) -> TrainingProgress:
    """Return a context manager that shows how far long work is; without ``timer`` nothing redraws what it shows."""
    from harness.commands.progress import TrainingProgress

    return TrainingProgress(stderr(), timer=timer)


class OneLine(logging.Handler):
    """Prints each record of a log as a line on the console that a function returns, its traceback below."""

    def __init__(self, console: Callable[[], Console], level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        console = self._console()
        message = " ".join(visible(record.getMessage()).splitlines())  # spaces stay: it may be a prompt
        console.print(
            f"[yellow]{escape(record.levelname.lower())}:[/] {escape(message)}", highlight=False, soft_wrap=True
        )
        if record.exc_info:
            lines = "".join(traceback.format_exception(*record.exc_info))
            console.print(escape(lines), highlight=False, soft_wrap=True)


def log_to(console: Console) -> None:
    """Send warnings to the console that draws the progress bar, so that neither overwrites the other."""
    logging.basicConfig(level=logging.WARNING, handlers=[OneLine(lambda: console)])


def print_defect() -> None:
    """Print the traceback of the exception that is being handled."""
    print(visible(traceback.format_exc()), file=sys.stderr, end="")


def tell_refused(refused: Sequence[tuple[Path, str]], console: Console, mark: str = "left out") -> None:
    """Say of each path why it was left out, in a line each, or one per kind of reason when there are many."""
    shown = [(one_line(str(path)), one_line(reason)) for path, reason in refused]
    for path, reason in shown[:LISTED]:
        tell(console, mark, reason if path in reason else f"{path}: {reason}")
    kinds = Counter(reason.replace(path, "…") for path, reason in shown[LISTED:])
    for reason, count in kinds.most_common(LISTED):
        tell(console, mark, f"{count} more: {reason}")
    if len(kinds) > LISTED:
        others = sum(count for _, count in kinds.most_common()[LISTED:])
        tell(console, mark, f"{others} more for other reasons")
