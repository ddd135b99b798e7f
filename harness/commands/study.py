"""``harness study``: a declared grid of runs, measured one after the other or on a cluster, resumable at any moment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.appearance.visible_text import one_line, shell_word
from harness.commands.calibrate import calibrate
from harness.commands.console import escape, log_to, stderr, stdout, tell_refused
from harness.commands.lazy import as_command
from harness.commands.options import configure
from harness.commands.trace import trace
from harness.commands.training import Recipes
from harness.config.model import Configuration
from harness.errors import ConfigError
from harness.registry import EXECUTORS, RECIPES
from harness.replay.options import CalibrateOptions
from harness.study.steps import Step
from harness.training.options import TraceCommand

if TYPE_CHECKING:
    from harness.appearance.terminal import Console
    from harness.contracts.executors import Executor
    from harness.study.conduct import Outcome
    from harness.study.grid import Point
    from harness.study.ledger import StudyDirectory

_UsageError: Any = typer.BadParameter.__mro__[1]
FAILED = 1


def check_steps(steps: Iterable[Step]) -> None:
    """Read every command line as the command would, and run none.

    Raises:
        ConfigError: an option that does not exist, lacks, or has a value that is not allowed; names the step.
    """
    for step in steps:
        first, *rest = step.command.words
        name, options = first, CalibrateOptions if first == "calibrate" else TraceCommand
        thing: Any = calibrate if first == "calibrate" else trace
        if first == "train":
            recipe, *rest = rest
            name, options, thing = f"train {recipe}", RECIPES.load(recipe), Recipes().load(recipe)
        try:
            _check(as_command(name, thing), rest, options)
        except _UsageError as error:
            said = error.format_message().partition(" (Possible")[0].rstrip(".")
            raise ConfigError(f"{step.title}: {said}. See `harness {name} --help`.") from None
        except ConfigError as error:
            raise ConfigError(f"{step.title}: {error.message}", error.commands) from None


def _check(command: Any, arguments: list[str], options: type[Configuration]) -> None:
    given = command.make_context(command.name, list(arguments)).params
    said = {name: value for name, value in given.items() if name in options.model_fields}
    configure(options, {name: value for name, value in said.items() if value not in (None, (), [])})


def study(
    declared: Annotated[
        str,
        typer.Argument(
            help="TOML file with [run], [grid], [[include]], [[exclude]] and [[override]]; or a preset: quick, "
            "all-strategies, green-code. A [[step]] makes what points are measured with.",
            metavar="STUDY",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the study. Default: studies/NAME.", metavar="DIR")] = None,
    executor: Annotated[
        str,
        typer.Option(help="What measures the points, see `harness list executors`.", metavar="NAME"),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of a cluster: auto or HOST:6379.", metavar="ADDRESS"),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--executor-option", help="Of the executor, see `harness show EXECUTOR`.", metavar="NAME=VALUE"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the points, then what they will take; measure no point.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the grid only the points with this value, or one of several: model=opt-125m,opt-350m. Repeatable.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Samples of each point and task, instead of the study's own.", min=1)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Go on with more than 1000 points.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try those again that failed before.")] = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option(help="Take over what another machine's study has measured.", metavar="DIR"),
    ] = None,
) -> None:
    """Measure every point of a grid that is not measured yet; the same command again goes on. See `harness watch`."""
    from harness.study.conduct import conduct
    from harness.study.grid import MANY, expand, read_study, size
    from harness.study.ledger import StudyDirectory
    from harness.study.steps import steps_of

    console = stderr()
    log_to(console)
    if dry_run and merge:
        raise ConfigError("--merge takes points over, and --dry-run changes nothing. Omit one of them.")
    grid = read_study(declared)
    if (count := size(grid)) > MANY and not yes:
        raise ConfigError(f"the study has {count} points, more than {MANY}. Say --yes if it is meant to.")
    points = expand(grid, {name: text.split(",") for name, text in _pairs(only or [], "--only").items()}, limit)
    for point in points:
        point.config()  # refuses what no run would accept, before anything is written
    steps = steps_of(grid.step)
    check_steps(steps)
    folder = out or Path("studies") / Path(declared).stem
    with StudyDirectory(folder, grid, points, dry=dry_run) as directory:
        for other in merge or []:
            _merge(directory, other, console)
        if dry_run and grid.needs:
            stdout().print(escape(grid.needs), highlight=False, soft_wrap=True)
        left = _list_parts(directory) if dry_run else []
        given = {"address": address} if address is not None else {}
        given |= _pairs(options or [], "--executor-option")
        with EXECUTORS.load(executor).open(given) as runs:
            if dry_run:
                _foresee(directory, left, runs, console)
                return
            from harness.commands.study_progress import StudyProgress

            with StudyProgress(console, "steps and points" if steps else "points") as progress:
                try:
                    outcome = conduct(directory, runs, progress, retry_failed=retry_failed)
                except KeyboardInterrupt:
                    progress.interrupted()
                    raise
    _say_outcome(outcome, folder, len(steps))
    if outcome.failed:
        raise typer.Exit(FAILED)


def _pairs(given: list[str], flag: str) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{flag} '{text}' is no NAME=VALUE.")
        found[name.strip()] = value.strip()
    return found


def _merge(directory: StudyDirectory, other: Path, console: Console) -> None:
    """Take over what another study has measured, and say what is left out."""
    from harness.study.steps import Step

    found = list(directory.merge(other))
    taken = [part for part, reason in found if not reason]
    steps = sum(isinstance(part, Step) for part in taken)
    said = f"{_steps(steps)} and " if steps else ""
    said += f"{len(taken) - steps} finished points came from {escape(one_line(str(other)))}"
    console.print(said, soft_wrap=True)
    tell_refused([(Path(part.title), reason) for part, reason in found if reason], console)


def _list_parts(directory: StudyDirectory) -> list[Point]:
    """Print what a study is made of, and return the points that are left."""
    console = stdout()
    for step in directory.steps:
        shown = "[green]✓[/] made" if directory.is_done(step) else "to be made"
        console.print(f"{escape(step.title)}: {shown}", highlight=False, soft_wrap=True)
    left = [point for point in directory.points if not directory.is_done(point)]
    for point in directory.points:
        where = escape(directory.directory(point).name)
        shown = f"{where}: to be measured" if point in left else f"{where}: [green]✓[/] measured"
        console.print(shown, highlight=False, soft_wrap=True)
    return left


def _foresee(directory: StudyDirectory, left: Sequence[Point], runs: Executor, console: Console) -> None:
    from harness.commands.study_progress import StudyProgress, estimate_table
    from harness.study.estimate import PROBE_REQUESTS, estimates

    found = []
    with StudyProgress(console, f"points to estimate, from {PROBE_REQUESTS} requests of each kind") as progress:
        progress.begin(len(left), 0)
        for one in estimates(directory, left, runs, progress.happened):
            progress.ended(one.point.name, one.refused)
            found.append(one)
    stdout().print(estimate_table(found, done=len(directory.points) - len(left)))


def _say_outcome(outcome: Outcome, folder: Path, steps: int) -> None:
    console = stdout()
    for name, reason in outcome.failed.items():
        console.print(f"[red]✗[/] {escape(name)}: {escape(one_line(reason))}", highlight=False, soft_wrap=True)
    where = escape(shell_word(folder / "runs"))
    failed = f", {len(outcome.failed)} failed (`--retry-failed` tries them again)" if outcome.failed else ""
    said = f"{_steps(outcome.made)} {'is' if outcome.made == 1 else 'are'} made, " if steps else ""
    console.print(f"{said}{outcome.finished:d} points are measured{failed}.", highlight=False, soft_wrap=True)
    if outcome.finished:
        console.print(
            f"Compare them with `harness leaderboard {where}/* --out SITE`; every point is a run directory.",
            highlight=False,
            soft_wrap=True,
        )


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
