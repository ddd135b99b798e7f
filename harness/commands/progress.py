"""A progress bar for a run, on stderr: windows done, what runs now, time left."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harness.appearance.terminal import Console, escape
from harness.appearance.visible_text import one_line, shell_word
from harness.records import WindowRecord


class RunProgress:
    """Implements :class:`harness.running.session.Observer` with rich; a context manager.

    Refreshed between windows only: a timer thread that redraws inside a window would be measured.

    Args:
        console: where to draw; a console that is not a terminal gets one line per stage and tenth.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._directory: Path | None = None
        self._task: TaskID | None = None
        self._stages = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), console=console, auto_refresh=False, transient=True
        )
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]left[/]"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def stage(self, text: str) -> None:
        """Name the slow thing that begins."""
        if not self._console.is_terminal:
            self._console.print(f"{escape(one_line(text))} …", highlight=False, soft_wrap=True)
            return
        self._stop()
        self._stages.start()
        for task in self._stages.task_ids:
            self._stages.remove_task(task)
        self._stages.add_task(f"{escape(one_line(text))} …", total=None)
        self._stages.refresh()

    def begin(self, total: int, done: int, directory: Path) -> None:
        """Start the bar."""
        self._stop()
        if self._task is None:  # a repeat begins where the one before ended
            kept = f", {done} kept" if done else ""
            self._console.print(
                f"[dim]{total} windows into {escape(one_line(str(directory)))}{kept}[/]", soft_wrap=True
            )
            self._task = self._progress.add_task("measuring", total=total, completed=done)
        self._directory = directory
        if self._console.is_terminal:
            self._progress.start()
            self._progress.refresh()

    def window(self, record: WindowRecord) -> None:
        """Advance the bar."""
        if self._task is None:
            return
        label = f"{record.task} {record.operating_point}"
        self._progress.update(self._task, advance=1, description=escape(one_line(label)[:44]))
        task = self._progress.tasks[-1]
        if self._console.is_terminal:
            self._progress.refresh()
        elif task.total and int(10 * task.completed / task.total) > int(10 * (task.completed - 1) / task.total):
            self._console.print(f"{task.completed:.0f} of {task.total:.0f} windows", highlight=False)

    def interrupted(self) -> None:
        """Say what a stopped run has kept and how it goes on."""
        self._stop()
        folder = escape(shell_word(self._directory)) if self._directory else ""
        where = f" Continue with `harness run --resume {folder}`." if folder else ""
        self._console.print(f"Stopped; every finished window is kept.{where}" if where else "Stopped.", soft_wrap=True)

    def _stop(self) -> None:
        if self._console.is_terminal:  # elsewhere nothing was started, and stopping would print an empty line
            self._stages.stop()
            self._progress.stop()


class TrainingProgress:
    """Implements :class:`harness.contracts.Progress` with rich; a context manager.

    Args:
        console: where to draw; a console that is not a terminal gets a line per stage and twentieth.
        timer: let a thread redraw the bar; without it only steps do, which disturbs nothing that is being measured.
    """

    def __init__(self, console: Console, *, timer: bool = True) -> None:
        self._console, self._timer = console, timer
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what, self._since, self._first = "", 0.0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def stage(self, text: str) -> None:
        """Name the slow thing that begins."""
        self._end()
        self._console.print(f"{escape(one_line(text))} …", highlight=False, soft_wrap=True)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Start the bar."""
        self._end()
        self._what, self._since, self._first = what, time.monotonic(), done
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]left[/]"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[note]}[/]"),
            console=self._console,
            disable=not self._console.is_terminal,
            auto_refresh=self._timer,
        )
        self._bar.start()
        self._task = self._bar.add_task(escape(one_line(what)), total=total, completed=done, note="")

    def step(self, done: int, note: str = "") -> None:
        """Advance the bar."""
        if self._bar is None or self._task is None:
            return
        before = self._bar.tasks[0].completed
        total = self._bar.tasks[0].total or 1
        self._bar.update(self._task, completed=done, note=escape(one_line(note)), refresh=not self._timer)
        if not self._console.is_terminal and int(20 * done / total) > int(20 * before / total):
            left = (time.monotonic() - self._since) / max(1, done - self._first) * (total - done)
            self._console.print(
                one_line(f"{self._what}: {done} of {total:.0f}, {left / 60:.0f} min left{', ' + note if note else ''}"),
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
