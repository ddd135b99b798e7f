"""``harness submit``: a run directory, checked and packed for publication."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.appearance.visible_text import one_line, shell_word
from harness.commands.console import escape, stdout
from harness.errors import StoreError
from harness.host.files import real_path


def submit(
    directory: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN_DIR", readable=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="Archive to write. Default: RUN.tar.gz here.", metavar="FILE", readable=False),
    ] = None,
) -> None:
    """Check that a run directory can be published, and pack it for `harness leaderboard`; say what is missing.

    Tables and scores are computed again, tokens, counts and times are held against each other, and what has to be
    believed is listed.
    """
    from harness.running.rescore import examine_submission, pack
    from harness.store.packed_run import ARCHIVE
    from reports.leaderboard.checks import CANNOT_BE_CHECKED

    file = out or Path(f"{real_path(directory).name}{ARCHIVE}")
    if not file.name.endswith(ARCHIVE):
        raise StoreError(f"--out {file} does not end in {ARCHIVE}. Use --out {file.name.partition('.')[0]}{ARCHIVE}.")
    submission = examine_submission(directory)
    console = stdout()
    width = max(len(check.name) for check in submission.checks)
    for check in submission.checks:
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
        detail = escape(one_line(check.detail))
        console.print(f"{mark} {check.name:<{width}}  {detail}", highlight=False, soft_wrap=True)
    console.print(escape(one_line(f"Cannot be checked: {CANNOT_BE_CHECKED}.")), highlight=False, soft_wrap=True)
    failed = sum(not check.passed for check in submission.checks)
    if failed:
        raise StoreError(
            f"{directory} cannot be published: {failed} of {len(submission.checks)} checks failed (above)."
        )
    pack(submission, file)
    packed = escape(shell_word(file))
    console.print(f"Packed in {packed}. Publish it with `harness leaderboard {packed} --out SITE`.", soft_wrap=True)
