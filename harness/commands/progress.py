"""Progress on stderr: a bar in a terminal, lines in a log.

A bar is redrawn by a thread of its own only where nothing is measured meanwhile.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.appearance.terminal import Console, escape
from harness.appearance.visible_text import one_line, shell_word
from harness.contracts.executors import Happened
from harness.records import WindowRecord

_LINES = 10
"""Lines in a log, at most, of one bar."""


def duration(seconds: float) -> str:
    """Return a time as one says it: ``2.5 h``, ``12 min``, ``8 s``."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 2 * 60 else f"{seconds:.0f} s"


class _Shown:
    """The base of progress, a context manager; a bar that is done stays where ``timer`` lets a thread redraw it."""

    def __init__(self, console: Console, *, timer: bool = False) -> None:
        self._console = console
        self._bar = Progress(
            *(TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn()),
            *(TextColumn("[dim]left[/]"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}[/]")),
            console=console,
            auto_refresh=timer,
            transient=not timer,
        )
        self._what, self._total, self._first, self._done, self._began = "", 0, 0, 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def stage(self, text: str) -> None:
        """Name the slow thing that begins."""
        self._stop()
        self._line(f"{escape(one_line(text))} …")

    def _start(self, what: str, total: int, done: int) -> None:
        self._stop()
        self._what, self._total, self._first, self._done, self._began = what, total, done, done, time.monotonic()
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task(escape(one_line(what)), total=total, completed=done, note="")
        if self._console.is_terminal:
            self._bar.start()

    def _stop(self) -> None:
        if self._console.is_terminal:  # elsewhere nothing was started, and stopping would print an empty line
            self._bar.stop()

    def _draw(self, **shown: Any) -> None:
        if self._console.is_terminal and self._bar.tasks:
            self._bar.update(self._bar.task_ids[0], refresh=not self._bar.live.auto_refresh, **shown)

    def _move(self, done: int, note: str = "", **shown: Any) -> None:
        """Advance the bar; in a log, say every tenth."""
        before, self._done = self._done, done
        self._draw(completed=done, note=escape(one_line(note)), **shown)
        if not self._console.is_terminal and _LINES * done // self._total > _LINES * before // self._total:
            left = f", {self._left()} left" if done < self._total else ""
            note = f", {note}" if note else ""
            self._line(escape(one_line(f"{self._what}: {done} of {self._total}{left}{note}")))

    def _left(self) -> str:
        each = (time.monotonic() - self._began) / max(1, self._done - self._first)
        return duration(each * (self._total - self._done))

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


class RunProgress(_Shown):
    """Implements :class:`harness.running.session.Observer`."""

    _directory: Path | None = None

    def begin(self, total: int, done: int, directory: Path) -> None:
        """Start the bar, or go on with it: a repeat begins where the one before ended."""
        if self._directory is None:
            kept = f", {done} kept" if done else ""
            self._line(f"[dim]{total:d} windows into {escape(one_line(str(directory)))}{kept}[/]")
            self._start("windows", total, done)
        self._directory = directory
        if self._console.is_terminal:
            self._bar.start()

    def window(self, record: WindowRecord) -> None:
        """Advance the bar."""
        label = escape(one_line(f"{record.task} {record.operating_point}")[:44])
        self._move(self._done + 1, description=label)

    def interrupted(self) -> None:
        """Say what a stopped run has kept and how it goes on."""
        self._stop()
        if self._directory is None:
            self._line("Stopped.")
        else:
            again = shell_word(self._directory)
            self._line(f"Stopped; every finished window is kept. Continue with `harness run --resume {escape(again)}`.")


class TrainingProgress(_Shown):
    """Implements :class:`harness.contracts.Progress`."""

    def __init__(self, console: Console, *, timer: bool = True) -> None:
        super().__init__(console, timer=timer)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Start the bar."""
        self._start(what, max(1, total), done)

    def step(self, done: int, note: str = "") -> None:
        """Advance the bar."""
        if self._bar.tasks:
            self._move(done, note)


class StudyProgress(_Shown):
    """Implements :class:`harness.study.conduct.Watcher`: a line per part that ended, and a bar over all ``parts``."""

    def __init__(self, console: Console, parts: str = "points") -> None:
        super().__init__(console)
        self._parts = parts

    def begin(self, total: int, done: int) -> None:
        """Start the bar."""
        kept = f", {done} done before" if done else ""
        self._line(f"[dim]{total:d} {escape(self._parts)}{kept}[/]")
        self._start(self._parts, total, done)

    def happened(self, event: Happened) -> None:
        """Say what a point or a step is doing."""
        windows = "" if event.windows is None else f"{event.windows[0]} of {event.windows[1]} windows · "
        self._draw(note=escape(one_line(f"{event.job.name}: {windows}{event.text}")[:90]))

    def ended(self, name: str, reason: str) -> None:
        """Advance the bar, and say what ended."""
        mark = f"[red]✗[/] {escape(name)}: {escape(one_line(reason))}" if reason else f"[green]✓[/] {escape(name)}"
        self._done += 1
        self._draw(completed=self._done)
        left = f" [dim]({self._done} of {self._total}, about {self._left()} left)[/]"
        self._line(mark + (left if self._done < self._total else ""))

    def interrupted(self) -> None:
        """Say what a stopped study has kept."""
        self._stop()
        self._line("Stopped; every finished window is kept. The same command goes on.")
