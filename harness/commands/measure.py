"""``harness run``, ``compare`` and ``rescore``: operating points measured and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.appearance.visible_text import shell_word
from harness.commands.console import (
    log_to,
    note,
    print_tables,
    say,
    show_progress,
    stderr,
    stdout,
    tell,
    write_json,
)
from harness.commands.options import AsJson, configured_by, named_by_flag, run_settings
from harness.config import RunConfig
from harness.config.run import OUTPUT
from harness.errors import DEFECT, ConfigError, HarnessError

HOLDS, UNKNOWN = 1, 2
"""Exit codes of ``compare``: a condition holds; one cannot be judged."""


@configured_by(RunConfig, build=False)
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Estimate what it takes from a few requests; keep nothing.", rich_help_panel=OUTPUT
        ),
    ] = False,
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
    if dry_run:
        from harness.commands.study import foresee_run

        if resume is not None or as_json or verbose:
            raise ConfigError("--dry-run prints what a new run takes. Omit --resume, --json and --verbose.")
        foresee_run(settings)
        return
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
    say(f"Records, report.md, summary.csv and summary.json are in {result.directory}")
    if not (verbose or as_json):
        say(f"All tables, the front and all notes: harness report {shell_word(result.directory)}")
    for why in result.summary.score_failures.values():
        tell(
            console,
            "warning",
            f"{why}. Its values are missing, all else is kept; when it is mended, `harness rescore "
            f"{shell_word(result.directory)}` computes them",
        )
    if result.summary.score_failures:
        raise typer.Exit(DEFECT)
    if not any(row.n for row in result.summary.rows):
        raise HarnessError(f"nothing was measured, since every sample failed: {result.summary.notes[0]}")


def compare(
    a: Annotated[Path, typer.Argument(help="The earlier run directory.", metavar="A", readable=False)],
    b: Annotated[Path, typer.Argument(help="Run directory of after.", metavar="B", readable=False)],
    point: Annotated[
        list[str] | None, typer.Option(help="Only this operating point. Repeatable.", metavar="NAME")
    ] = None,
    point_a: Annotated[
        str | None, typer.Option(help="This operating point of A …; A and B may be one run.", metavar="NAME")
    ] = None,
    point_b: Annotated[str | None, typer.Option(help="… with this one of B.", metavar="NAME")] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit with 1 if this holds with its whole 95 % interval, and with 2 if it cannot be judged: "
            "'latency_p50>+5%', 'edit_similarity<-0.01', 'agreement<1', 'speedup<-3% @ py150/rl'. Repeatable.",
            metavar="CONDITION",
        ),
    ] = None,
    details: Annotated[bool, typer.Option("--details", help="Every metric of every operating point.")] = False,
    as_json: AsJson = False,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Also write Markdown, for a comment on a pull request.", metavar="FILE", readable=False),
    ] = None,
) -> None:
    """Compare two runs: what B changed against A, with 95 % intervals, tests, and conditions for CI."""
    from harness.running.reading import read_run
    from reports.comparing.compare import compare_runs
    from reports.comparing.conditions import grouped, judge, parse_condition
    from reports.comparing.document import comparison_document, comparison_markdown, tables
    from reports.files import write_files
    from reports.metrics.vocabulary import recorded_scores

    if (point_a is None) != (point_b is None):
        missing = "--point-b" if point_b is None else "--point-a"
        raise ConfigError(f"--point-a and --point-b go together; {missing} is missing.")
    if point_a is not None and point:
        raise ConfigError("--point compares namesakes, --point-a and --point-b two names. Use one or the other.")
    if markdown is not None and not markdown.parent.is_dir():
        raise ConfigError(f"--markdown {markdown}: the folder {markdown.parent} does not exist.")
    pair = (point_a, point_b) if point_a is not None and point_b is not None else None
    runs = read_run(a, stored=True), read_run(b, stored=True)
    scores = recorded_scores(cell for run in runs for cell in run.cells.values())
    conditions = [parse_condition(text, scores) for text in fail_if or ()]
    found = compare_runs(*runs, point or (), pair)
    judged = [one for condition in conditions for one in judge(condition, found.points)]
    if markdown is not None:
        write_files(markdown.parent, {markdown.name: comparison_markdown(found, judged)})
    if as_json:
        write_json(comparison_document(found, judged), ensure_ascii=False)
    else:
        print_tables(tables(found, details=details))
    console = stderr()
    marks = {"holds": ("failed", "bold red"), "perhaps": ("warning", "yellow"), "unknown": ("error", "bold red")}
    for line, one in grouped(judged):
        if one.outcome != "passed":
            mark, style = marks[one.outcome]
            tell(console, mark, line, style)
    outcomes = {one.outcome for one in judged}
    if code := HOLDS if "holds" in outcomes else UNKNOWN if "unknown" in outcomes else 0:
        raise typer.Exit(code)


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
    note(f"{len(done.names)} score(s): {done.values} values computed, {done.changed} changed, {done.missing} missing")
    if done.failures:
        raise typer.Exit(DEFECT)
