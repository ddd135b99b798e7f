"""Runs operating points over samples, interleaved, and writes every record as soon as it is final.

For each block of samples every operating point runs once per repeat, in random order, inside one
measured window, so that drift of the machine favours no operating point and everything is paired.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from harness.config import RunConfig
from harness.contracts import Meter
from harness.decoding.engine import Engine
from harness.decoding.graphs import recorder_for
from harness.decoding.unit_costs import Timing
from harness.errors import ConfigError, OutOfMemoryError
from harness.host.foreign_files import real_path
from harness.metering import open_meter
from harness.metering.contamination import FOREIGN_SHARE
from harness.metering.cpu_load import SHORTEST_LOOK_S, LoadReading, LoadWatch, threads_left
from harness.metering.pacing import samples_per_block
from harness.records import Manifest, WindowRecord
from harness.records.summary import Summary
from harness.registry import keeping_folder, without_exit
from harness.running.calibrated import departures, with_calibrated_points
from harness.running.kept_model import KeptModel
from harness.running.manifest import describe_run, is_out_of_memory
from harness.running.observing import with_observed_thresholds
from harness.running.plan import Draw, Plan, make_plan
from harness.running.reading import read_run
from harness.running.repeats import run_repeat
from harness.running.session import Observer, Session
from harness.running.windows import durations
from harness.store.run_directory import RunDirectory, fresh_directory, refuse_occupied
from harness.store.same_run import refuse_other_configuration, refuse_other_placement
from reports.statistics.intervals import MINIMUM_PAIRS
from reports.tables.report import write_report

__all__ = ["RunResult", "execute", "measure_repeat"]

logger = logging.getLogger(__name__)

QUEUED_REQUESTS = 8
"""Requests in a window with a fixed arrival rate, so that a queue can form."""


class _Silent:
    def stage(self, text: str) -> None: ...

    def begin(self, total: int, done: int, directory: Path) -> None: ...

    def window(self, record: WindowRecord) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves.

    Attributes:
        directory: the run directory.
        summary: its rows and notes.
    """

    directory: Path
    summary: Summary


def execute(
    config: RunConfig,
    *,
    resume: Path | None = None,
    observer: Observer | None = None,
    draw: Draw | None = None,
    model: KeptModel | None = None,
    placement: Mapping[str, str] = MappingProxyType({}),
) -> RunResult:
    """Run a configuration and leave its report in the run directory, which nobody else can write meanwhile.

    Args:
        config: what to run.
        resume: a run directory to continue instead of making a new one.
        observer: is told how it goes on.
        draw: returns the tasks, samples included, where they are none of the registered ones; one repeat only, since
            a fresh process cannot draw them again.
        model: holds the model of the run before, and then of this one.
        placement: who runs it where, for the manifest.

    Raises:
        HarnessError: the run cannot be made, or could not go on.
    """
    with without_exit(), keeping_folder("the run went on"):
        return _execute(config, resume, observer or _Silent(), draw, model or KeptModel(), placement)


def _execute(
    config: RunConfig,
    resume: Path | None,
    observer: Observer,
    draw: Draw | None,
    model: KeptModel,
    placement: Mapping[str, str],
) -> RunResult:
    config = with_calibrated_points(config)
    if resume is None:
        config = with_observed_thresholds(config, observer.stage)
    with _measure(config, resume, 0, observer, model, draw=draw, placement=placement) as store:
        path = store.path
        _free_memory()
        for repeat in range(1, config.repeats):
            if not _is_finished(path, repeat):
                run_repeat(store, repeat, observer)
        observer.stage("scoring")
        with keeping_folder("the run was scored"):
            summary = read_run(path).summary
        write_report(summary, path)
    return RunResult(path, summary)


def _free_memory() -> None:
    """Give back what the model of this process took of a GPU, since a repeat's process needs the room."""
    import gc

    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _is_finished(path: Path, repeat: int) -> bool:
    """Whether a repeat has every window that the first one has, which is complete by now."""
    with RunDirectory.read(path) as store:
        done = store.finished()
    return {key[:2] + key[3:] for key in done if key[2] == 0} == {key[:2] + key[3:] for key in done if key[2] == repeat}


def measure_repeat(directory: Path, repeat: int, observer: Observer, lock: int | None = None) -> None:
    """Measure one repeat of a run that is on disk, here; what :mod:`harness.running.repeat_process` does.

    Args:
        directory: of the run.
        repeat: 0-based.
        observer: is told how it goes on.
        lock: descriptor of the directory's lock, which the parent process holds.

    Raises:
        HarnessError: the run cannot go on.
    """
    with RunDirectory.read(directory) as store:
        config = RunConfig.build({key: value for key, value in store.manifest.config.items() if key != "out"})
    with without_exit():
        _measure(config, directory, repeat, observer, KeptModel(), lock=lock).close()


def _measure(
    config: RunConfig,
    resume: Path | None,
    repeat: int,
    observer: Observer,
    model: KeptModel,
    *,
    draw: Draw | None = None,
    placement: Mapping[str, str] = MappingProxyType({}),
    lock: int | None = None,
) -> RunDirectory:
    """Load what a run needs and measure one repeat; returns the run directory, locked."""
    import torch

    before = _before(config, resume)
    observer.stage("checking the configuration and drawing samples")
    with keeping_folder("the run was planned"):
        plan = make_plan(config, draw, begins=repeat == 0)
    placement = {**placement, **plan.model.placement(plan.device)}
    if resume is not None and before is not None:
        refuse_other_placement(resume, before, placement)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with keeping_folder("the meter was opened"):
        meter, unavailable = open_meter(config.energy, plan.model.devices(plan.device), config.tdp_w)
    with contextlib.ExitStack() as closing:
        closing.callback(meter.close)
        loaded = model.load(plan, _formats(config, before), observer.stage)
        plan = plan.stored_in([one.info for one in loaded])
        for line in departures(plan):
            logger.warning("%s", line)
        engines = {
            name: Engine(one.backbone, one.info, config.kv_input, _timing(name, before, config), recorder)
            for one in loaded
            for name, recorder in [(one.info.weights_format, recorder_for(one.backbone, config.graphs))]
        }
        session = Session(plan, engines, meter)
        closing.callback(session.close)
        if session.idle_s:
            observer.stage(f"measuring the machine at rest for {session.idle_s:g} s")
        with keeping_folder("the model warmed up"):
            idle = session.rest()
            observer.stage("warming up")
            load = LoadWatch()
            warmup = _warm_up(session, config)
        if repeat == 0 and plan.device.startswith("cpu") and not config.untimed:
            _warn_of_others(load.read(), torch.get_num_threads())
        times = {name: engine.timing.times for name, engine in engines.items()}
        block_size = _block_size(config, before, meter, warmup)
        manifest = describe_run(plan, loaded, meter, unavailable, block_size, before, times)
        manifest = manifest.model_copy(update={"placement": placement})
        path = resume or config.out or fresh_directory("-".join((real_path(config.model).name, *config.tasks)))
        with contextlib.ExitStack() as on_error:
            store = on_error.enter_context(_open(path, manifest, resume=resume is not None, lock=lock))
            _warn_of_few_blocks(plan, manifest.block_size)
            session.measure(store, [*idle, *warmup], observer, repeat)
            on_error.pop_all()
    return store


def _formats(config: RunConfig, before: Manifest | None) -> Sequence[str | None]:
    """Return the weights formats to load: those of the run that goes on, whatever ``auto`` would choose now."""
    return config.weights_formats if before is None else before.model.formats


def _timing(weights_format: str, before: Manifest | None, config: RunConfig) -> Timing:
    """Let strategies ask what decoding costs; a run goes on with the costs that it began with, and bytes untimed."""
    if before is None:
        return Timing(measures=not config.untimed)
    return Timing(before.model.stored(weights_format).unit_times, measures=False)


def _warn_of_few_blocks(plan: Plan, block_size: int) -> None:
    """Say before an hour of measuring that its intervals will be missing."""
    fewest = min(len(task.data.samples) for task in plan.tasks)
    if MINIMUM_PAIRS <= fewest < MINIMUM_PAIRS * block_size - block_size + 1:
        logger.warning(
            "a block holds %d samples (the energy sensor's tick, --block-size or --arrival-rate), so %d samples make "
            "too few blocks for any interval: use --limit %d or more",
            block_size,
            fewest,
            MINIMUM_PAIRS * block_size,
        )


def _warn_of_others(load: LoadReading | str, threads: int) -> None:
    """Say before anything is measured that the machine is not this run's alone; a short look would see ticks."""
    if isinstance(load, str) or load.span_s < SHORTEST_LOOK_S or load.foreign_share <= FOREIGN_SHARE:
        return
    fewer = threads_left(load.foreign_share, load.cores)
    waiting = ", and decoding loses more than that, since its threads wait for each other" if threads > 1 else ""
    cures = ["Stop them"]
    cures += [f"use --threads {fewer}"] if threads > fewer else []
    logger.warning(
        "other processes take %.0f%% of the cores' time%s. %s; windows they disturb are flagged, and --strict measures "
        "those again",
        100 * load.foreign_share,
        waiting,
        ", or ".join(cures),
    )


def _warm_up(session: Session, config: RunConfig) -> list[WindowRecord]:
    try:
        return session.warm_up()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory while warming up with a batch of {config.batch_size}; nothing was measured yet. "
            "Use a smaller --batch-size, --dtype bfloat16 or a smaller --model."
        ) from error


def _before(config: RunConfig, resume: Path | None) -> Manifest | None:
    """Look at the target directory before anything slow: it must be new, or be the run to resume."""
    if resume is not None:
        with RunDirectory.read(resume) as store:
            refuse_other_configuration(resume, store.manifest, config.model_dump(mode="json"))
            return store.manifest
    _check_writable(config.out or Path("runs"))
    if config.out is not None and config.out.exists():
        refuse_occupied(config.out)
    return None


def _check_writable(path: Path) -> None:
    """Refuse a folder that could not be made, before a model is loaded for it."""
    folder = next(parent for parent in [path, *path.absolute().parents] if os.path.lexists(parent))
    if not folder.is_dir():
        raise ConfigError(f"the run directory {path} cannot be made: {folder} is no folder. Use another --out.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"the run directory {path} cannot be made: {folder} is not writable. Use another --out.")


def _open(path: Path, manifest: Manifest, *, resume: bool, lock: int | None) -> RunDirectory:
    return RunDirectory.resume(path, manifest, lock) if resume else RunDirectory.create(path, manifest)


def _block_size(config: RunConfig, before: Manifest | None, meter: Meter, warmup: Sequence[WindowRecord]) -> int:
    """Samples per block: one batch, or as many as the energy sensor needs for a valid window."""
    if before is not None:
        return before.block_size
    if config.block_size is not None:
        return config.block_size
    needed = samples_per_block(meter.sensor_period_s, durations(warmup), config.batch_size)
    return needed if config.arrival_rate is None else max(needed, QUEUED_REQUESTS)
