"""``harness calibrate``: the laxest threshold that keeps a promise, with its certificate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.appearance.visible_text import one_line, shell_word
from harness.commands.console import escape, log_to, stderr, stdout, write_json
from harness.commands.options import configure, configured_by, run_settings
from harness.errors import ConfigError
from harness.replay.options import CalibrateOptions

if TYPE_CHECKING:
    from harness.appearance.terminal import Console
    from harness.replay.calibrate import Target
    from reports.recorded import RecordedRun

logger = logging.getLogger(__name__)


@configured_by(CalibrateOptions)
def calibrate(
    given: dict[str, Any],
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue a run directory, or calibrate on a finished one anew.", metavar="DIR"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the operating point instead of the table.")] = False,
) -> None:
    """Choose the laxest threshold that keeps a promise about documents, and write it with its certificate.

    Decodes documents live at every threshold (a run directory like any other) and tests from strict to lax.
    `harness run --strategy @FILE` takes what is written.
    """
    options = configure(CalibrateOptions, given)
    console = stderr()
    log_to(console)
    from harness.records.guarantee import shared_projects
    from harness.replay.calibrate import (
        calibrated,
        calibration_tables,
        certified,
        held_out_check,
        parse_target,
        refuse_too_few,
        settings_of,
        split_check,
    )
    from harness.store.record_files import write_document
    from reports.tables.writers import to_terminal

    target = parse_target(options.target)
    if options.file is not None and (options.file.is_dir() or not options.file.parent.is_dir()):
        raise ConfigError(f"--file {options.file}: give a file in a folder that exists.")
    run = _decoded(options, given, target, resume, console)
    folder = shell_word(run.directory)
    console.print(
        f"[dim]Decoded in {escape(folder)}: --resume {escape(folder)} calibrates on it again.[/]", soft_wrap=True
    )
    name = options.strategies[0].partition(":")[0] if options.strategies else ""
    settings = settings_of(run, target, name, options.unit)
    refuse_too_few(settings.losses.shape[1], options, target)
    if options.unit == "document" and (shared := shared_projects(settings.projects)):
        logger.warning("%s", shared)
    strategy = settings.points[0].strategy
    others = [settings_of(_finished(other), target, strategy, options.unit) for other in options.against]
    for each in others:
        if known := len(settings.known_in(each)):
            logger.warning(
                "--against %s: it was calibrated on %d of these %d documents, and is not tested by them",
                one_line(str(each.run.directory)),
                known,
                len(each.documents),
            )
    point = calibrated(settings, target, options)
    count = certified(options, target.risk)
    chosen = sum(each.passed for each in point.guarantee.tested) - 1
    checks = [held_out_check(settings, each, chosen, target.risk, count) for each in others]
    file = options.written_to(run.directory)
    write_document(file, point)
    if as_json:
        write_json(point.model_dump_json(indent=2))
    else:
        here = split_check(settings.losses, target.risk, count)
        stdout().print(to_terminal(calibration_tables(point, here, checks)))
    where = escape(shell_word(file))
    console.print(f"[dim]Use it with `harness run --strategy @{where}`.[/]", soft_wrap=True, highlight=False)


def _decoded(
    options: CalibrateOptions, given: dict[str, Any], target: Target, resume: Path | None, console: Console
) -> RecordedRun:
    """Return the run of the documents, made or finished first where it is not."""
    from harness.commands.progress import RunProgress
    from harness.replay.calibrate import record
    from harness.running.reading import read_run
    from harness.running.runner import execute

    if resume is not None:
        changed = (given.keys() & options.run_fields) - {"strategies"}
        if changed:
            raise ConfigError(f"--resume {resume} has its settings: omit {', '.join(sorted(changed))}.")
        name, *listed = options.strategies[0].split(":") if options.strategies else [""]
        if listed:
            raise ConfigError(f"--resume {resume} has its settings, and all are tested: give --strategy {name} alone.")
        run = read_run(resume, stored=True)
        if not run.state:
            return run
    with RunProgress(console) as progress:
        try:
            if resume is None:
                directory = record(options, target, progress)
            else:
                directory = execute(run_settings({}, None, resume), resume=resume, observer=progress).directory
        except KeyboardInterrupt:
            progress.interrupted()
            console.print("Then calibrate with --resume and the same --target.", soft_wrap=True)
            raise
    return read_run(directory, stored=True)


def _finished(folder: Path) -> RecordedRun:
    from harness.running.reading import read_run

    run = read_run(folder, stored=True)
    if run.state:
        raise ConfigError(f"--against {one_line(str(folder))}: {run.state}. {run.remedy}")
    return run
