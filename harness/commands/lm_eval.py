"""``harness lm-eval``: tasks of lm-evaluation-harness, with depth, time and energy beside their metrics."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from harness.appearance.visible_text import one_line
from harness.commands.console import escape, log_to, stderr, stdout, write_json
from harness.commands.options import configure, configured_by
from harness.host.libraries import require
from harness.lm_eval.options import LmEvalOptions


@configured_by(LmEvalOptions)
def lm_eval(
    given: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print lm-eval's results of each operating point.")] = False,
) -> None:
    """Run tasks of lm-evaluation-harness at full depth and with early exits; writes a run directory."""
    options = configure(LmEvalOptions, given)
    require("lm-eval", "lm_eval")
    console = stderr()
    log_to(console)
    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress bar is enough, and none inside a window
    from harness.commands.progress import RunProgress
    from harness.lm_eval.evaluate import evaluate
    from harness.lm_eval.results import FOLDER, tables
    from reports.tables.writers import to_terminal

    with RunProgress(console) as progress:
        found = evaluate(options, progress)
    if as_json:
        from lm_eval.utils import handle_non_serializable

        write_json(found.results, default=handle_non_serializable)
    else:
        stdout().print(to_terminal(tables(found.results)))
    where = escape(one_line(str(found.directory)))
    written = f"Records, report.md, summary.csv and summary.json are in {where}, lm-eval's results in {where}/{FOLDER}."
    if found.run is None:
        written = (
            f"lm-eval's results are in {where}/{FOLDER}. No task generates, so there is no run for `harness report`."
        )
    console.print(f"[dim]{written}[/]", soft_wrap=True)
