"""A progress bar for a run, on stderr: windows done, what runs now, time left."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
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

from harness.records import WindowRecord

__all__ = ["RunProgress"]


class RunProgress:
    """Implements :class:`harness.session.Observer` with rich; a context manager.

    Refreshed between windows only: a timer thread that redraws inside a window would be measured.

    Args:
        console: where to draw; a console that is not a terminal gets one line per stage.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._directory: Path | None = None
        self._task: TaskID | None = None
        self._stage: TaskID | None = None
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
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
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        """Name the slow thing that begins."""
        if not self._console.is_terminal:
            self._console.print(f"{text} …", highlight=False)
            return
        if self._stage is not None:
            self._progress.remove_task(self._stage)
        self._stage = self._progress.add_task(f"{text} …", total=None)
        self._progress.refresh()

    def begin(self, total: int, done: int, directory: Path) -> None:
        """Start the bar."""
        if self._stage is not None:
            self._progress.remove_task(self._stage)
            self._stage = None
        self._directory = directory
        self._console.print(f"[dim]{total} windows into {directory}[/]" + (f", {done} kept" if done else ""))
        self._task = self._progress.add_task("measuring", total=total, completed=done)
        self._progress.refresh()

    def window(self, record: WindowRecord) -> None:
        """Advance the bar."""
        if self._task is not None:
            self._progress.update(self._task, advance=1, description=f"{record.task} {record.operating_point}"[:44])
            self._progress.refresh()

    def interrupted(self) -> None:
        """Say what a stopped run has kept and how it goes on."""
        self._progress.stop()
        where = f" Continue with `harness run --resume {self._directory}`." if self._directory else ""
        self._console.print(f"Stopped; every finished window is kept.{where}" if where else "Stopped.")
