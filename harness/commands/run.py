"""``harness run``: operating points over tasks, measured and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.appearance.visible_text import one_line
from harness.commands.console import escape, log_to, stderr, stdout, write_json
from harness.commands.options import configured_by
from harness.config import RunConfig

__all__ = ["run"]


@configured_by(RunConfig)
def run(
    given: dict[str, Any],
    resume: Annotated[Path | None, typer.Option(help="Continue a run directory.", metavar="DIR")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file; flags win. Names as here, with underscores; strategies and tasks are lists.",
            metavar="FILE",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of the table.")] = False,
) -> None:
    """Run operating points over a task and print the comparison. Without options: the demo."""
    from harness.running.settings import resolve_settings

    settings = resolve_settings(given, config, resume)
    console = stderr()
    log_to(console)
    from harness.commands.progress import RunProgress
    from harness.running.runner import execute
    from reports.tables.terminal import render

    with RunProgress(console) as progress:
        try:
            result = execute(settings, resume=resume, observer=progress)
        except KeyboardInterrupt:
            progress.interrupted()
            raise
    if as_json:
        write_json(result.summary.model_dump_json(indent=2))
    else:
        stdout().print(render(result.summary))
    console.print(
        f"[dim]Records, report.md, summary.csv and summary.json are in {escape(one_line(str(result.directory)))}[/]",
        soft_wrap=True,
    )
