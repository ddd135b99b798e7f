"""``harness calibrate``, ``sweep`` and ``suitability``: settings chosen from what was recorded or traced once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.appearance.visible_text import one_line, shell_word
from harness.commands.console import log_to, print_tables, say, show_progress, stderr, write_json
from harness.commands.options import AsJson, configure, configured_by, one_model, run_settings, use_threads
from harness.errors import ConfigError, StoreError
from harness.host.files import require_writable
from harness.registry import KV_POLICIES
from harness.replay.options import CalibrateOptions, SuitabilityOptions, SweepOptions

if TYPE_CHECKING:
    from harness.replay.calibrate import Target
    from reports.recorded import RecordedRun

logger = logging.getLogger(__name__)


@configured_by(CalibrateOptions, build=False)
def calibrate(
    given: dict[str, Any],
    resume: Annotated[
        Path | None, typer.Option(help="Continue a run directory, or calibrate on a finished one anew.", metavar="DIR")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the laxest threshold that keeps a promise about documents, and write it with its certificate.

    Decodes documents live at every threshold (a run directory like any other) and tests from strict to lax.
    `harness run --strategy @FILE` takes what is written.
    """
    options = configure(CalibrateOptions, given)
    log_to(stderr())
    from harness.records.guarantee import shared_projects
    from harness.replay import calibrate as how
    from harness.store.record_files import write_document

    target = how.parse_target(options.target)
    if options.file is not None and (options.file.is_dir() or not options.file.parent.is_dir()):
        raise ConfigError(f"--file {options.file}: give a file in a folder that exists.")
    if options.file is not None:
        require_writable(options.file.parent, ConfigError, "Use another --file.")
    run = _decoded(options, given, target, resume)
    folder = shell_word(run.directory)
    say(f"Decoded in {folder}: --resume {folder} calibrates on it again.")
    name = options.strategies[0].partition(":")[0] if options.strategies else ""
    settings = how.settings_of(run, target, name, options.unit)
    how.refuse_too_few(settings.losses.shape[1], options, target)
    if options.unit == "document" and (shared := shared_projects(settings.projects)):
        logger.warning("%s", shared)
    others = [
        how.settings_of(_finished(other), target, settings.points[0].strategy, options.unit)
        for other in options.against
    ]
    for each in others:
        if known := len(settings.known_in(each)):
            logger.warning(
                "--against %s: it was calibrated on %d of these %d documents, and is not tested by them",
                one_line(str(each.run.directory)),
                known,
                len(each.documents),
            )
    point = how.calibrated(settings, target, options)
    count = how.certified(options, target.risk)
    chosen = sum(each.passed for each in point.guarantee.tested) - 1
    checks = [how.held_out_check(settings, each, chosen, target.risk, count) for each in others]
    file = options.written_to(run.directory)
    write_document(file, point)
    if as_json:
        write_json(point.model_dump_json(indent=2))
    else:
        here = how.split_check(settings.losses, target.risk, count)
        print_tables(how.calibration_tables(point, here, checks))
    say(f"Use it with `harness run --strategy @{shell_word(file)}`.")


def _decoded(options: CalibrateOptions, given: dict[str, Any], target: Target, resume: Path | None) -> RecordedRun:
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
    with RunProgress(stderr()) as progress:
        try:
            if resume is None:
                directory = record(options, target, progress)
            else:
                directory = execute(run_settings({}, None, resume), resume=resume, observer=progress).directory
        except KeyboardInterrupt:
            progress.interrupted()
            say("Then calibrate with --resume and the same --target.")
            raise
    return read_run(directory, stored=True)


def _finished(folder: Path) -> RecordedRun:
    from harness.running.reading import read_run

    run = read_run(folder, stored=True)
    if run.state:
        raise ConfigError(f"--against {one_line(str(folder))}: {run.state}. {run.remedy}")
    return run


@configured_by(SweepOptions)
def sweep(options: SweepOptions, as_json: AsJson = False) -> None:
    """Replay strategies on a trace: depth, agreement and expected speed-up of every threshold, in seconds."""
    if not KV_POLICIES.load(options.kv).facts.keeps_cache:
        raise ConfigError(f"--kv '{options.kv}' cannot be replayed: it keeps no KV cache. Use another --kv.")

    from harness.commands.progress import RunProgress
    from harness.replay.sweep import sweep as replay_all
    from harness.replay.tables import FILES, sweep_tables, write_sweep
    from harness.training.traces.store import Traces

    if options.out is not None:
        _check_writable(options.out, {*FILES, "live"})
    fixed = ",".join(map(str, Traces.open(options.replay, options.model or "").exit_points))
    with show_progress() as progress:
        references = (f"fixed:layer={fixed}", "oracle") if options.references and fixed else ()
        result = replay_all(options, references, progress=progress)
    found, scores = result.sweep, result.calibration
    if options.out is not None:
        write_sweep(found, options.out, scores)  # before anything that takes minutes and can be interrupted
    if options.live:
        from harness.replay.live import with_drift

        with RunProgress(stderr()) as running:
            found = with_drift(result, observer=running)
        if options.out is not None:
            write_sweep(found, options.out)
    if as_json:
        write_json(found.model_dump_json(indent=2))
    else:
        print_tables(sweep_tables(found, keep=options.keep, calibration=scores))
    each = found.replay_s / (found.tokens * len(found.rows))
    judged = "" if scores is None else f", scores judged in {scores.seconds:.1f} s"
    written = "" if options.out is None else f" sweep.json, sweep.csv and calibration.json are in --out{judged}."
    say(
        f"{len(found.rows)} operating points × {found.tokens} tokens replayed in {found.replay_s:.1f} s "
        f"({each * 1e6:.2f} µs each).{written}"
    )


def _check_writable(folder: Path, own: set[str]) -> None:
    """Refuse, before any slow work, a folder that cannot be made, or holds other files."""
    require_writable(folder, StoreError)
    if others := sorted({path.name for path in folder.glob("*")} - own):
        raise StoreError(f"{folder} holds other files ({others[0]}). Use another --out.")


@configured_by(SuitabilityOptions, build=False)
def suitability(
    given: dict[str, Any],
    name: Annotated[str | None, typer.Argument(help="The model; as --model.", metavar="MODEL")] = None,
    as_json: AsJson = False,
) -> None:
    """Say before any work whether early exit can pay for a model here, and which family of strategies: minutes."""
    options = configure(SuitabilityOptions, one_model(given, name))

    from harness.replay.suitability import assess
    from harness.replay.verdict import suitability_tables

    use_threads(options.threads)
    with show_progress() as progress:
        found = assess(options, progress)
    if as_json:
        write_json(found.model_dump_json(indent=2))
    else:
        print_tables(suitability_tables(found))
