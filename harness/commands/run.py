"""``harness run``: operating points over tasks, measured and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.appearance.visible_text import one_line, shell_word
from harness.commands.console import escape, log_to, stderr, stdout, tell, write_json
from harness.commands.options import configured_by, named_by_flag, run_settings
from harness.config import RunConfig
from harness.config.run import OUTPUT
from harness.errors import DEFECT


@configured_by(RunConfig)
def run(
    given: dict[str, Any],
    resume: Annotated[
        Path | None, typer.Option(help="Continue a run directory.", metavar="DIR", rich_help_panel=OUTPUT)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file; flags win. Names as here, with underscores; strategies and tasks are lists.",
            metavar="FILE",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Print all of report.md: every table, notes, glossary.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print summary.json instead of the table.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Run operating points over a task and print the comparison. Without options: the demo."""
    with named_by_flag(RunConfig, given):  # what a file says is named as there
        settings = run_settings(given, config, resume)
    console = stderr()
    log_to(console)
    from harness.commands.progress import RunProgress
    from harness.running.runner import execute
    from reports.tables.report import brief, render

    with RunProgress(console) as progress:
        try:
            result = execute(settings, resume=resume, observer=progress)
        except KeyboardInterrupt:
            progress.interrupted()
            raise
    if as_json:
        write_json(result.summary.model_dump_json(indent=2))
    else:
        stdout().print(render(result.summary) if verbose else brief(result.summary))
    where = escape(one_line(str(result.directory)))
    console.print(f"[dim]Records, report.md, summary.csv and summary.json are in {where}[/]", soft_wrap=True)
    if not (verbose or as_json):
        shown = escape(shell_word(result.directory))
        console.print(f"[dim]All tables, the front and all notes: harness report {shown}[/]", soft_wrap=True)
    for why in result.summary.score_failures.values():
        tell(
            console,
            "warning",
            f"{why}. Its values are missing, all else is kept; when it is mended, `harness rescore "
            f"{shell_word(result.directory)}` computes them",
        )
    if result.summary.score_failures:
        raise typer.Exit(DEFECT)
