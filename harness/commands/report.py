"""``harness report``: tables and Pareto fronts of run directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness.commands.console import stdout

__all__ = ["report"]


def report(
    directories: Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN_DIR…")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print the tables and Pareto fronts of run directories, and write report.md, summary.csv and summary.json."""
    from harness.reading import read_run
    from reports.export import write_report
    from reports.terminal import render

    summaries = [read_run(directory).summary for directory in directories]
    if as_json:
        parts = [summary.model_dump(mode="json") for summary in summaries]
        print(json.dumps(parts if len(parts) > 1 else parts[0], indent=2))
    else:
        for summary in summaries:
            stdout().print(render(summary))
    for summary, directory in zip(summaries, directories, strict=True):  # last: it fails where only reading is allowed
        write_report(summary, directory)
