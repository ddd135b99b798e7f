"""How a study is shown while it runs and before it does: a bar over its parts, and a table of what points will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.appearance.terminal import Console, escape
from harness.appearance.visible_text import one_line
from harness.contracts.executors import Happened

if TYPE_CHECKING:
    from harness.study.estimate import Estimate  # which loads torch

_HOUR, _MINUTE = 3600, 60


def duration(seconds: float) -> str:
    """Return a time as one says it: ``2.5 h``, ``12 min``, ``8 s``."""
    if seconds >= 2 * _HOUR:
        return f"{seconds / _HOUR:.1f} h"
    if seconds >= 2 * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds:.0f} s"


class StudyProgress:
    """Implements :class:`harness.study.conduct.Watcher` with rich; a context manager.

    Redrawn when something happened only: a timer thread that redraws inside a window would be measured.

    Args:
        console: where to draw; a console that is not a terminal gets a line per part.
        parts: what a study is made of.
    """

    def __init__(self, console: Console, parts: str = "points") -> None:
        self._console, self._parts = console, parts
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}[/]"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task: TaskID | None = None
        self._began = time.monotonic()
        self._here = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def begin(self, total: int, done: int) -> None:
        """Start the bar."""
        kept = f", {done} done before" if done else ""
        what = self._parts
        self._console.print(f"[dim]{total} {what}{kept}[/]", highlight=False)
        self._task = self._bar.add_task(self._parts, total=total, completed=done, note="")
        if self._console.is_terminal:
            self._bar.start()

    def happened(self, event: Happened) -> None:
        """Say what a point or a step is doing."""
        if not self._console.is_terminal or self._task is None:
            return
        windows = "" if event.windows is None else f"{event.windows[0]} of {event.windows[1]} windows · "
        self._bar.update(self._task, note=escape(one_line(f"{event.job.name}: {windows}{event.text}")[:90]))
        self._bar.refresh()

    def ended(self, name: str, reason: str) -> None:
        """Advance the bar, and say what ended."""
        mark = f"[red]✗[/] {escape(name)}: {escape(one_line(reason))}" if reason else f"[green]✓[/] {escape(name)}"
        self._here += 1
        if self._task is not None:
            self._bar.advance(self._task)
            task = self._bar.tasks[0]
            each = (time.monotonic() - self._began) / self._here
            left = (task.total or 0) - task.completed
            mark += (
                f" [dim]({task.completed:.0f} of {task.total:.0f}, about {duration(each * left)} left)[/]"
                if left
                else ""
            )
        self._console.print(mark, highlight=False, soft_wrap=True)

    def interrupted(self) -> None:
        """Say what a stopped study has kept."""
        if self._console.is_terminal:
            self._bar.stop()
        self._console.print("Stopped; every finished window is kept. The same command goes on.", soft_wrap=True)


def estimate_table(found: Sequence[Estimate], done: int) -> Table:
    """Return what points will take: requests, time with its interval, energy, host memory; and all of them together."""
    table = Table(
        title=f"{len(found)} points are left, {done} measured", title_justify="left", box=None,
        caption="Time as if every request ran at full depth, ± what few requests leave open (95 %); exits make it "
        "less, checks more. Loading and scoring are not counted. Host memory: the peak of the process, a GPU's own "
        "memory apart.", caption_justify="left",
    )  # fmt: skip
    table.add_column("point")
    for name in ("requests", "time", "energy", "host memory"):
        table.add_column(name, justify="right")
    for one in found:
        if one.waits:
            table.add_row(one.point.name, f"[dim]after[/] {escape(one_line(one.waits))}")
        elif one.refused:
            table.add_row(one.point.name, f"[red]cannot run[/]: {escape(one_line(one.refused))}")
        else:
            table.add_row(
                one.point.name, str(one.requests), _time(one.seconds), _joules(one.joules), _bytes(one.memory_bytes)
            )
    able = [one for one in found if not one.refused and not one.waits]
    if len(able) > 1:
        times = [one.seconds for one in able if one.seconds is not None]
        joules = [one.joules for one in able if one.joules is not None]
        whole = (sum(time for time, _ in times), sum(error for _, error in times))  # probes are shared: errors add up
        memory = max((one.memory_bytes or 0 for one in able), default=0)
        table.add_section()
        table.add_row(
            "together", str(sum(one.requests or 0 for one in able)), _time(whole),
            _joules(sum(joules) if len(joules) == len(able) else None), _bytes(memory or None), style="bold",
        )  # fmt: skip
    return table


def _time(seconds: tuple[float, float] | None) -> str:
    return "–" if seconds is None else f"{duration(seconds[0])} ± {duration(seconds[1])}"


def _joules(joules: float | None) -> str:
    if joules is None:
        return "–"
    return f"{joules / 3600:.2f} Wh" if joules >= 3600 else f"{joules:.0f} J"


def _bytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e9:.2f} GB"
