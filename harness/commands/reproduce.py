"""``harness reproduce``: two commands in one, a paper's study on a small model and its report beside the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.appearance.visible_text import shell_word
from harness.commands.console import escape, stderr
from harness.commands.report import report
from harness.commands.study import study
from harness.errors import UnknownNameError


def reproduce(
    paper: Annotated[str, typer.Argument(help="green-code.", metavar="PAPER")] = "green-code",
    limit: Annotated[int, typer.Option(help="Samples per task; the paper has 1,000.", min=1)] = 6,
    out: Annotated[Path | None, typer.Option(help="Folder. Default: studies/PAPER.", metavar="DIR")] = None,
) -> None:
    """Measure a published experiment again, on a small model, and show it beside the published numbers.

    Short for the two commands that it prints; the same command again goes on.
    """
    if paper != "green-code":
        raise UnknownNameError("paper", paper, ["green-code"])
    out = out or Path("studies") / paper
    folder, model = shell_word(out), "model=smollm2-135m"
    for command in (
        f"harness study {paper} --only {model} --limit {limit} --out {folder}",
        f"harness report {folder} --against {paper} --out {shell_word(out / 'report')}",
    ):
        stderr().print(escape(command), highlight=False, soft_wrap=True)
    failed: typer.Exit | None = None
    try:
        study(paper, out=out, only=[model], limit=limit)
    except typer.Exit as some:  # of its points; the others are reported
        failed = some
    report([out], out=out / "report", against=paper)
    if failed is not None:
        raise failed
