"""``harness report``: tables and Pareto fronts of run directories, or a whole report of many with figures and LaTeX."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.appearance.visible_text import one_line
from harness.commands.console import note, print_tables, say, stderr, tell, tell_refused, write, write_json
from harness.commands.options import AsJson
from harness.errors import ConfigError, HarnessError, StoreError, UnknownNameError
from harness.host.libraries import require
from reports.figures.drawing import Width

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.commands.progress import TrainingProgress
    from harness.records.summary import Summary
    from reports.collection import Collection


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories; with --out also sweeps and trainings.", metavar="RUN_DIR", readable=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write one report of all runs, with figures and LaTeX, into this folder. RUN_DIR may then be a folder "
            "of runs; what cannot be read is listed and the rest reported.",
            metavar="DIR",
        ),
    ] = None,
    figures: Annotated[
        bool | None,
        typer.Option(
            "--figures/--no-figures", help="With --out: draw figures of every run, or none. Default: of up to 20 runs."
        ),
    ] = None,
    width: Annotated[
        Width | None,
        typer.Option(
            help="Width of the figures: a column (3.5 in) or the text (7 in) of a two-column paper. Default: text."
        ),
    ] = None,
    columns: Annotated[
        str,
        typer.Option(help="Print one table of each task, with these of `harness.columns()`.", metavar="NAME[,NAME…]"),
    ] = "",
    sort: Annotated[str, typer.Option(help="Print rows by this column, the best first.", metavar="NAME")] = "",
    table: Annotated[
        str, typer.Option(help="Print only the tables whose titles have these words.", metavar="WORDS")
    ] = "",
    without_duplicates: Annotated[
        bool,
        typer.Option(
            "--without-duplicates",
            help="Print the tables without what a run with --duplicates keep has marked. Writes no files.",
        ),
    ] = False,
    stored: Annotated[
        bool,
        typer.Option(
            "--stored", help="With --out: trust each summary.json instead of computing it again: faster the first time."
        ),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="green-code: show runs of `harness study green-code` beside the published numbers; with --out also as "
            "files and figures. RUN_DIR may be the study's folder.",
            metavar="PAPER",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the tables and Pareto fronts of run directories, and write report.md, summary.csv and summary.json."""
    together = out is not None and against is None
    choice = {"columns": tuple(filter(None, columns.split(","))), "sort": sort, "titled": table}
    if any(choice.values()) and (out is not None or against is not None or as_json):
        raise ConfigError("--columns, --sort and --table choose what is printed. Omit --out, --against and --json.")
    if columns and table:
        raise ConfigError("--columns makes a table, and --table chooses among others. Omit one.")
    if against is not None and (without_duplicates or stored or figures is not None or as_json):
        raise ConfigError("--against goes with --out and --width alone. Omit the other options.")
    if together and without_duplicates:
        raise ConfigError("--without-duplicates prints tables and writes no files. Omit --out.")
    if out is None and (stored or figures is not None or width is not None):
        raise ConfigError("--stored and figures are of a report in a folder. Add --out DIR.")
    if against is not None:
        _against(against, directories, out, width or "text")
    elif out is not None:
        _together(directories, out, figures, width or "text", stored=stored, as_json=as_json)
    else:
        _each(directories, choice, as_json=as_json, duplicates=not without_duplicates)


def _each(directories: list[Path], choice: dict[str, Any], *, as_json: bool, duplicates: bool) -> None:
    from harness.running.reading import read_run
    from reports.tables.report import report as whole
    from reports.tables.report import write_report
    from reports.tables.run_tables import chosen

    summaries: list[tuple[Summary, Path]] = []
    refused: list[tuple[Path, str]] = []
    for directory in directories:
        try:
            summaries.append((read_run(directory, duplicates=duplicates).summary, directory))
        except HarnessError as error:
            if len(directories) == 1:
                raise
            refused.append((directory, one_line(str(error))))
    if as_json and summaries:
        parts = [summary.model_dump(mode="json") for summary, _ in summaries]
        write_json(parts if len(directories) > 1 else parts[0])
    elif not as_json:
        for summary, _ in summaries:
            print_tables(chosen(summary, **choice) if any(choice.values()) else whole(summary))
    tell_refused(refused, stderr())
    for summary, directory in summaries if duplicates else ():  # last: it fails where only reading is allowed
        write_report(summary, directory)
    if refused:
        raise StoreError(f"{len(refused)} of {len(directories)} run directories cannot be read (above).")


def _against(paper: str, directories: list[Path], out: Path | None, width: Width) -> None:
    """Show runs beside a paper's published numbers, and write both as files where a folder is named."""
    from harness.running.reading import read_runs
    from reports.figures.drawing import save_figures
    from reports.files import write_files
    from reports.published.against import against_green_code, comparison_csv, comparison_figures, comparison_tables
    from reports.tables.writers import to_markdown

    if paper != "green-code":
        raise UnknownNameError("paper", paper, ["green-code"])
    if out is not None:
        require("figures", "matplotlib")
    runs, unread = read_runs(directories, keep=True)
    tell_refused([(one.directory, one.reason) for one in unread], stderr())
    compared = against_green_code(runs)
    tables = [table for one in compared for table in comparison_tables(one)]
    print_tables(tables)
    if out is not None:
        text = "\n".join(("# GREEN-CODE, published and measured", *to_markdown(tables), ""))
        drawn = [comparison_figures(one) for one in compared]
        save_figures(chain.from_iterable(drawn), out, width)
        csvs = {f"{grid.name}.csv": comparison_csv(one) for (grid, _), one in zip(drawn, compared, strict=True)}
        (file, *_) = write_files(out, {"green-code.md": text, **csvs})
        say(f"As Markdown and CSV, with figures: {file}")


def _together(
    directories: list[Path], out: Path, figures: bool | None, width: Width, *, stored: bool, as_json: bool
) -> None:
    from harness.commands.progress import TrainingProgress
    from reports.collection import check_folder, write_collection

    if figures is not False:
        require("figures", "matplotlib", otherwise="--no-figures leaves them out")
    check_folder(out)
    console = stderr()
    with TrainingProgress(console) as progress:
        collection = _collected(directories, progress, stored=stored)
        refused = [(Path(path), reason) for path, reason in collection.refused]
        tell_refused(refused, console)
        for problem in (problem for logs in collection.trainings for problem in logs.problems):
            tell(console, "warning", problem)
        if collection.empty:
            asked = len(refused) + len(collection.trainings)
            raise StoreError(
                f"none of {asked} run directories, sweeps and trainings can be read. Make a run with `harness run`."
            )
        files = write_collection(
            collection, out, figures=figures, width=width, progress=_steps(progress, "figures drawn")
        )
    if as_json:
        for part in chain(collection.as_json(), "\n"):
            write(part, end="")
        return
    for name, run in collection.named:
        if run.state:
            tell(console, name, run.state)
    if collection.copies:
        name, words = next(iter(collection.copies.items()))
        text = f"{len(collection.copies)} of {len(collection.runs)} runs share windows with others, as {name}: {words}"
        tell(console, "warning", f"{text}.")
    drawn = sum(path.suffix == ".svg" for path in files)
    left_out = f", {len(refused)} left out" if refused else ""
    note(f"{len(collection.runs)} run(s){left_out}, {drawn} figure(s): {files[0]}")


def _collected(directories: list[Path], progress: TrainingProgress, *, stored: bool) -> Collection:
    """Read runs, calibrations and trainings, each by itself: what cannot be read costs the others nothing."""
    from harness.running.reading import read_runs
    from reports.collection import MOST_RUNS_DRAWN, Collection, find_calibrations, read_calibration
    from reports.training_logs import holds_training, read_training, training_folders

    given = [path for path in directories if holds_training(path)]
    sweeps = find_calibrations(path for path in directories if path not in given)
    runs_asked = [path for path in directories if path not in given and path not in sweeps]
    runs, unread = read_runs(
        runs_asked,
        stored=stored,
        keep=True,
        held=MOST_RUNS_DRAWN,
        progress=_steps(progress, "runs read"),
    )
    refused = [(str(one.directory), one.reason) for one in unread]
    calibrations = []
    for folder in sweeps:
        try:
            calibrations.append(read_calibration(folder))
        except StoreError as error:
            refused.append((str(folder), one_line(str(error))))
    trainings = [read_training(folder, named) for folder, named in training_folders(runs, given)]
    return Collection(tuple(runs), tuple(refused), tuple(calibrations), tuple(trainings))


def _steps(progress: TrainingProgress, what: str) -> Callable[[int, int], None]:
    """Return what draws a bar from its first step on: nothing to do has none."""
    begun = False

    def step(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            begun = True
            progress.begin(what, total)
        progress.step(done)

    return step
