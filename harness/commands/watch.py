"""``harness watch``: how far a study is."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands.console import stdout, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from harness.study.status import Best, Status, StudyView


def watch(
    directory: Annotated[Path, typer.Argument(help="Folder of the study.", metavar="STUDY", readable=False)],
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.5, metavar="S")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Look once and print it as JSON.")] = False,
) -> None:
    """Show what a study has done, what runs and what is left, until it is over or stopped.

    Exit code: 0 all is made and measured; 1 it is over, and some failed; 3 some is left, and it goes on; 4 some is
    left, and no process measures it: the same `harness study` command goes on.
    """
    from harness.study.status import RUNNING, StudyView

    study = StudyView(directory)
    status = study.look()
    if as_json:
        best = [asdict(one) for one in study.best()]
        write_json({**asdict(status), "waiting": status.waiting, "best": best})
        raise typer.Exit(status.exit_code)
    console = stdout()
    if once or not console.is_terminal:
        console.print(_shown(study, status))
        raise typer.Exit(status.exit_code)
    from rich.live import Live

    with Live(_shown(study, status), console=console, auto_refresh=False) as live:
        while status.exit_code == RUNNING:
            time.sleep(every)
            status = study.look()
            live.update(_shown(study, status), refresh=True)
    raise typer.Exit(status.exit_code)


def _shown(study: StudyView, status: Status) -> RenderableType:
    from rich.console import Group

    from harness.appearance.terminal import escape
    from harness.appearance.visible_text import one_line
    from harness.commands.study_progress import duration
    from harness.study.status import STOPPED, seconds_since

    done = len(status.finished) + len(status.merged)
    left = f" · about {duration(status.left_s)} left" if status.left_s else ""  # of points: steps are not in it
    merged = f" ({len(status.merged)} merged)" if status.merged else ""
    steps = f"{len(status.made)} of {status.steps} steps made · " if status.steps else ""
    head = (
        f"{steps}{done} of {status.points} points measured{merged} · {len(status.running)} running · "
        f"{len(status.failed)} failed · {status.waiting} waiting{left}"
    )
    parts: list[RenderableType] = [f"[bold]{head}[/]"]
    if status.exit_code == STOPPED:
        parts.append("[yellow]Stopped: no process measures it. The same `harness study` command goes on.[/]")
    now = datetime.now(UTC)
    for each in status.running:
        windows = f"{each.windows} windows, " if each.windows is not None else ""
        since = duration(seconds_since(each.since, now))
        parts.append(f"▸ {escape(one_line(each.point))}: {windows}for {since}")
    parts += [
        f"[red]✗ {escape(one_line(name))}: {escape(one_line(reason))}[/]" for name, reason in status.failed.items()
    ]
    best = study.best()
    return Group(*parts, *([_table(best)] if best else []))


def _table(best: Sequence[Best]) -> Table:
    from rich.table import Table

    from harness.appearance.terminal import escape
    from harness.appearance.visible_text import one_line

    table = Table(title="Fastest so far, over full depth of the same run", title_justify="left", box=None)
    for name, justify in (
        ("", "left"),
        ("operating point", "left"),
        ("task", "left"),
        ("whole request", "right"),
        ("edit sim.", "right"),
        ("point", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for one in best:
        similarity = "–" if one.edit_similarity is None else f"{one.edit_similarity:.3f}"
        kind = "lossless" if one.lossless else "lossy"
        table.add_row(
            kind,
            escape(one_line(one.operating_point)),
            escape(one.task),
            f"{one.speedup:.2f}×",
            similarity,
            escape(one.point),
        )
    return table
