"""``harness study`` and ``watch``: a declared grid of runs, resumable at any moment, and how far it is."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.appearance.visible_text import one_line, shell_word
from harness.commands.console import escape, log_to, stderr, stdout, tell_refused, write_json
from harness.commands.lazy import as_command
from harness.commands.options import configure
from harness.commands.replay import calibrate
from harness.commands.training import Recipes, trace
from harness.config.model import Configuration
from harness.errors import ConfigError
from harness.registry import EXECUTORS, RECIPES
from harness.replay.options import CalibrateOptions
from harness.study.steps import Step
from harness.training.options import TraceCommand

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from harness.appearance.terminal import Console
    from harness.config import RunConfig
    from harness.contracts.executors import Executor
    from harness.study.conduct import Outcome
    from harness.study.estimate import Estimate
    from harness.study.grid import Point
    from harness.study.ledger import StudyDirectory
    from harness.study.status import Best, Status, StudyView

_UsageError: Any = typer.BadParameter.__mro__[1]
FAILED = 1


def check_steps(steps: Iterable[Step]) -> None:
    """Read every command line as the command would, and run none."""
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
        str, typer.Option(help="What measures the points, see `harness list executors`.", metavar="NAME")
    ] = "local",
    address: Annotated[str | None, typer.Option(help="Of a cluster: auto or HOST:6379.", metavar="ADDRESS")] = None,
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
        list[Path] | None, typer.Option(help="Take over what another machine's study has measured.", metavar="DIR")
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
                found = _foresee(directory, left, runs)
                title = f"{len(left)} points are left, {len(points) - len(left)} measured"
                stdout().print(_estimate_table(found, title))
                return
            from harness.commands.progress import StudyProgress

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


def _foresee(directory: StudyDirectory, left: Sequence[Point], runs: Executor) -> list[Estimate]:
    """Measure a few requests of each kind, and return what the points will take."""
    from harness.commands.progress import StudyProgress
    from harness.study.estimate import PROBE_REQUESTS, estimates

    found = []
    with StudyProgress(stderr(), f"to estimate, from {PROBE_REQUESTS} requests of each kind") as progress:
        progress.begin(len(left), 0)
        for one in estimates(directory, left, runs, progress.happened):
            progress.ended(one.point.name, one.refused)
            found.append(one)
    return found


def foresee_run(settings: RunConfig) -> None:
    """Print what a run would complete and what it takes, as a study of this one point; nothing of it is kept."""
    from harness.running.resolve import resolve
    from harness.study.grid import StudyConfig, expand
    from harness.study.ledger import StudyDirectory

    plan = resolve(settings)
    for task in plan.tasks:
        where = f"{task.record.source}, protocol {task.record.protocol}"
        stdout().print(escape(f"{task.record.name}: {task.record.samples} samples of {where}"), soft_wrap=True)
    stdout().print(escape(f"operating points: {', '.join(point.name for point in plan.points)}"), soft_wrap=True)
    grid = StudyConfig(run=settings.model_dump(mode="json", exclude={"out"}, exclude_unset=True))
    points = [replace(point, name="the run") for point in expand(grid)]
    with (
        tempfile.TemporaryDirectory(prefix="harness-estimate-") as folder,
        StudyDirectory(Path(folder), grid, points, dry=True) as directory,
        EXECUTORS.load("local").open({}) as runs,
    ):
        [found] = _foresee(directory, points, runs)
    if found.refused:
        raise ConfigError(found.refused)
    stdout().print(_estimate_table([found], "Nothing of it is measured yet"))


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


def _estimate_table(found: Sequence[Estimate], title: str) -> Table:
    """Return what points will take, each and together: requests, time with its interval, energy, host memory."""
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=None,
        caption="Time as if every request ran at full depth, ± what few requests leave open (95 %); exits make it "
        "less, checks more. Loading and scoring are not counted. Host memory: the peak of the process, a GPU's own "
        "memory apart.", caption_justify="left",
    )  # fmt: skip
    table.add_column("point")
    for name in ("requests", "time", "energy", "host memory"):
        table.add_column(name, justify="right")
    for one in found:
        if one.waits:
            table.add_row(one.point.name, f"[dim]after[/] {escape(one_line(one.waits))}")
        elif one.refused:
            table.add_row(one.point.name, f"[red]cannot run[/]: {escape(one_line(one.refused))}")
        else:
            table.add_row(
                one.point.name, str(one.requests), _time(one.seconds), _joules(one.joules), _bytes(one.memory_bytes)
            )
    able = [one for one in found if not one.refused and not one.waits]
    if len(able) > 1:
        times = [one.seconds for one in able if one.seconds is not None]
        joules = [one.joules for one in able if one.joules is not None]
        whole = (sum(time for time, _ in times), sum(error for _, error in times))  # probes are shared: errors add up
        memory = max((one.memory_bytes or 0 for one in able), default=0)
        table.add_section()
        table.add_row(
            "together", str(sum(one.requests or 0 for one in able)), _time(whole),
            _joules(sum(joules) if len(joules) == len(able) else None), _bytes(memory or None), style="bold",
        )  # fmt: skip
    return table


def _time(seconds: tuple[float, float] | None) -> str:
    from harness.commands.progress import duration

    return "–" if seconds is None else f"{duration(seconds[0])} ± {duration(seconds[1])}"


def _joules(joules: float | None) -> str:
    if joules is None:
        return "–"
    return f"{joules / 3600:.2f} Wh" if joules >= 3600 else f"{joules:.0f} J"


def _bytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e9:.2f} GB"


def watch(
    directory: Annotated[Path, typer.Argument(help="Folder of the study.", metavar="STUDY", readable=False)],
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.5, metavar="S")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Look once and print it as JSON.")] = False,
) -> None:
    """Show what a study has done, what runs and what is left, until it is over or stopped.

    Exit code: 0 all is made and measured; 1 it is over, and some failed; 3 some is left, and it goes on; 4 some is
    left, and no process measures it: the same `harness study` command goes on.
    """
    from harness.study.status import RUNNING, StudyView

    study = StudyView(directory)
    status = study.look()
    if as_json:
        best = [asdict(one) for one in study.best()]
        write_json({**asdict(status), "waiting": status.waiting, "best": best})
        raise typer.Exit(status.exit_code)
    console = stdout()
    if once or not console.is_terminal:
        console.print(_shown(study, status))
        raise typer.Exit(status.exit_code)
    from rich.live import Live

    with Live(_shown(study, status), console=console, auto_refresh=False) as live:
        while status.exit_code == RUNNING:
            time.sleep(every)
            status = study.look()
            live.update(_shown(study, status), refresh=True)
    raise typer.Exit(status.exit_code)


def _shown(study: StudyView, status: Status) -> RenderableType:
    from rich.console import Group

    from harness.commands.progress import duration
    from harness.study.status import STOPPED, seconds_since

    done = len(status.finished) + len(status.merged)
    left = f" · about {duration(status.left_s)} left" if status.left_s else ""  # of points: steps are not in it
    merged = f" ({len(status.merged)} merged)" if status.merged else ""
    steps = f"{len(status.made)} of {status.steps} steps made · " if status.steps else ""
    head = (
        f"{steps}{done} of {status.points} points measured{merged} · {len(status.running)} running · "
        f"{len(status.failed)} failed · {status.waiting} waiting{left}"
    )
    parts: list[RenderableType] = [f"[bold]{head}[/]"]
    if status.exit_code == STOPPED:
        parts.append("[yellow]Stopped: no process measures it. The same `harness study` command goes on.[/]")
    now = datetime.now(UTC)
    for each in status.running:
        windows = f"{each.windows} windows, " if each.windows is not None else ""
        since = duration(seconds_since(each.since, now))
        parts.append(f"▸ {escape(one_line(each.point))}: {windows}for {since}")
    parts += [
        f"[red]✗ {escape(one_line(name))}: {escape(one_line(reason))}[/]" for name, reason in status.failed.items()
    ]
    best = study.best()
    return Group(*parts, *([_best_table(best)] if best else []))


def _best_table(best: Sequence[Best]) -> Table:
    from rich.table import Table

    table = Table(title="Fastest so far, over full depth of the same run", title_justify="left", box=None)
    for name in ("", "operating point", "task", "whole request", "edit sim.", "point"):
        table.add_column(name, justify="right" if name in ("whole request", "edit sim.") else "left")
    for one in best:
        similarity = "–" if one.edit_similarity is None else f"{one.edit_similarity:.3f}"
        cells = ("lossless" if one.lossless else "lossy", one_line(one.operating_point), one.task)
        table.add_row(*map(escape, (*cells, f"{one.speedup:.2f}×", similarity, one.point)))
    return table
