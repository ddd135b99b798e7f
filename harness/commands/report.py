"""``harness report``: tables and Pareto fronts of run directories, or a whole report of many with figures and LaTeX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness.commands.console import escape, stderr, stdout
from harness.errors import ConfigError, StoreError

__all__ = ["report"]


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(help="Run directories; with --out also sweeps and trainings.", metavar="RUN_DIR…"),
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print the tables and Pareto fronts of run directories, and write report.md, summary.csv and summary.json."""
    if out is not None:
        _together(directories, out, figures, as_json=as_json)
        return
    if figures is not None:
        raise ConfigError("figures need a folder. Add --out DIR.")
    from harness.reading import read_run
    from reports.tables.export import write_report
    from reports.tables.terminal import render

    summaries = [read_run(directory).summary for directory in directories]
    if as_json:
        parts = [summary.model_dump(mode="json") for summary in summaries]
        print(json.dumps(parts if len(parts) > 1 else parts[0], indent=2))
    else:
        for summary in summaries:
            stdout().print(render(summary))
    for summary, directory in zip(summaries, directories, strict=True):  # last: it fails where only reading is allowed
        write_report(summary, directory)


def _together(directories: list[Path], out: Path, figures: bool | None, *, as_json: bool) -> None:
    from harness.progress import TrainingProgress
    from harness.reading import read_runs
    from reports.calibrations import find_calibrations, read_calibration
    from reports.collection import Collection, check_folder, write_collection
    from reports.training.folders import training_folders
    from reports.training.logs import holds_training, read_training

    check_folder(out)
    given = [path for path in directories if holds_training(path)]
    sweeps = find_calibrations(path for path in directories if path not in given)
    runs_asked = [path for path in directories if path not in given and path not in sweeps]
    console = stderr()
    with TrainingProgress(console) as progress:
        begun: set[str] = set()

        def watch(what: str, done: int, total: int) -> None:
            if what not in begun:
                begun.add(what)
                progress.begin(what, total)
            progress.step(done)

        runs, refused = read_runs(runs_asked, watch=lambda done, total: watch("runs read", done, total))
        for refusal in refused:
            console.print(f"[yellow]left out:[/] {escape(refusal.reason)}", highlight=False, soft_wrap=True)
        if not (runs or given or sweeps):
            raise StoreError(f"none of {len(refused)} run directories can be read. Make one with `harness run`.")
        collection = Collection(
            tuple(runs),
            tuple((str(one.directory), one.reason) for one in refused),
            tuple(read_calibration(folder) for folder in sweeps),
            tuple(read_training(folder) for folder in training_folders(runs, given)),
        )
        files = write_collection(
            collection, out, figures=figures, watch=lambda done, total: watch("figures drawn", done, total)
        )
    if as_json:
        print(json.dumps(collection.as_json(), indent=2))
        return
    for name, run in collection.named:
        if run.state:
            console.print(f"[yellow]{escape(name)}:[/] {escape(run.state)}", highlight=False, soft_wrap=True)
    drawn = sum(path.suffix == ".svg" for path in files)
    left_out = f", {len(refused)} left out" if refused else ""
    stdout().print(f"{len(runs)} run(s){left_out}, {drawn} figure(s): {escape(str(files[0]))}", soft_wrap=True)
