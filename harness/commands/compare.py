"""``harness compare``: what changed from one run to another, and whether that may pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands.console import stderr, stdout, tell, write_json
from harness.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reports.comparing.conditions import Judgement

HOLDS, UNKNOWN = 1, 2


def compare(
    a: Annotated[Path, typer.Argument(help="Run directory of before.", metavar="A", readable=False)],
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Also write Markdown, for a comment on a pull request.", metavar="FILE", readable=False),
    ] = None,
) -> None:
    """Compare two runs: what B changed against A, with 95 % intervals, tests, and conditions for CI."""
    from harness.running.reading import read_run
    from reports.comparing.compare import Wanted, compare_runs
    from reports.comparing.conditions import judge, parse_condition
    from reports.comparing.document import comparison_document, comparison_markdown, tables
    from reports.files import write_files
    from reports.metrics.vocabulary import recorded_scores
    from reports.tables.writers import to_terminal

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
    found = compare_runs(*runs, Wanted(tuple(point or ()), pair))
    judged = [one for condition in conditions for one in judge(condition, found.points)]
    if markdown is not None:
        write_files(markdown.parent, {markdown.name: comparison_markdown(found, judged)})
    if as_json:
        write_json(comparison_document(found, judged), ensure_ascii=False)
    else:
        stdout().print(to_terminal(tables(found, details=details)))
    code = _print_judgements(judged)
    if code:
        raise typer.Exit(code)


def _print_judgements(judged: Sequence[Judgement]) -> int:
    """Print what became of the conditions; return the exit code."""
    from reports.comparing.conditions import grouped

    console = stderr()
    marks = {"holds": ("failed", "bold red"), "perhaps": ("warning", "yellow"), "unknown": ("error", "bold red")}
    for line, one in grouped(judged):
        if one.outcome != "passed":
            mark, style = marks[one.outcome]
            tell(console, mark, line, style)
    outcomes = {one.outcome for one in judged}
    return HOLDS if "holds" in outcomes else UNKNOWN if "unknown" in outcomes else 0
