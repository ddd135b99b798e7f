"""``harness rescore``: scores of a run, computed again from what it recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.console import log_to, show_progress, stderr, stdout, tell
from harness.errors import DEFECT


def rescore(
    directory: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN_DIR", readable=False)],
    score: Annotated[
        list[str] | None,
        typer.Option(help="A score of `harness list scores`; repeatable. Default: all.", metavar="NAME"),
    ] = None,
) -> None:
    """Compute scores again, new and mended ones included, from the texts and references that a run recorded.

    Nothing is measured again, and nothing that was measured changes: the scores stand in `scores.json`, which every
    report reads. A score that fails leaves the value that was recorded.
    """
    console = stderr()
    log_to(console)
    from harness.running.rescore import rescore as compute

    with show_progress() as progress:
        done = compute(directory, tuple(dict.fromkeys(score or ())), progress)
    for why in done.failures.values():
        tell(console, "warning", why)
    stdout().print(
        f"{len(done.names):d} score(s): {done.values:d} values computed, "
        f"{done.changed:d} changed, {done.missing:d} missing",
        soft_wrap=True,
        highlight=False,
    )
    if done.failures:
        raise typer.Exit(DEFECT)
