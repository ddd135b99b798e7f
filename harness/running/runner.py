"""Runs operating points over samples, interleaved, and writes every record as soon as it is final.

For each block of samples every operating point runs once per repeat, in random order, inside one measured window.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import torch

from harness.config import RunConfig
from harness.contracts import BlackBox, Meter
from harness.contracts.meters import is_measured
from harness.decoding import blocks, kernels
from harness.decoding.engine import Engine
from harness.decoding.graphs import recorder_for
from harness.decoding.unit_costs import Timing
from harness.errors import ConfigError, HarnessError
from harness.host import environment
from harness.host.files import real_path, require_writable
from harness.metering import open_meter
from harness.metering.contamination import FOREIGN_SHARE, SHORTEST_LOOK_S, LoadReading, LoadWatch, threads_left
from harness.metering.counters import samples_per_block
from harness.metering.examine import examine
from harness.metering.sensors import sensors_of_meter
from harness.models.model import KeptModel, LoadedModel
from harness.records import (
    SCHEMA_VERSION,
    FormatChoiceRecord,
    FormatRecord,
    Manifest,
    MeterRecord,
    ModelRecord,
    UnitTimes,
    WindowRecord,
)
from harness.records.summary import Summary
from harness.registry import WEIGHTS_FORMATS, keeping_folder, no_silent_end, without_exit
from harness.running.plan import Draw, Plan, shared_fields
from harness.running.reading import read_run
from harness.running.repeats import Reporter, refusal_message, run_repeat
from harness.running.resolve import guarantee_violations, resolve
from harness.running.scoring import missing_scores, score_names
from harness.running.session import Observer, Session
from harness.store.run_directory import RunDirectory, fresh_directory, refuse_occupied
from harness.store.same_run import code_of_objects, used_plugins
from reports.tables.report import write_report

logger = logging.getLogger(__name__)

QUEUED_REQUESTS = 8
"""Requests in a window with a fixed arrival rate, so that a queue can form."""


class _Silent:
    def stage(self, text: str) -> None: ...

    def begin(self, total: int, done: int, directory: Path) -> None: ...

    def window(self, record: WindowRecord) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

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
        observer: is notified of the progress.
        draw: returns tasks that are none of the registered ones; one repeat only, since no fresh process can draw them.
        model: holds the model of the run before, and then of this one.
        placement: who runs it where, for the manifest.
    """
    with without_exit(), keeping_folder("the run went on"):
        observer = observer or _Silent()
        with _measure(config, resume, 0, observer, model or KeptModel(), draw=draw, placement=placement) as store:
            path = store.path
            if torch.cuda.is_available():  # a repeat's process needs the room
                gc.collect()
                torch.cuda.empty_cache()
            for repeat in range(1, config.repeats):
                with RunDirectory.read(path) as found:  # the first repeat is complete by now
                    done = found.finished()
                first, own = ({key[:2] + key[3:] for key in done if key[2] == one} for one in (0, repeat))
                if first != own:
                    run_repeat(store, repeat, observer)
            observer.stage("scoring")
            with keeping_folder("the run was scored"):
                summary = read_run(path, keep=True).summary
            write_report(summary, path)
    return RunResult(path, summary)


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
    before = _before(config, resume)
    observer.stage("checking the configuration and drawing samples")
    with keeping_folder("the run was planned"):
        plan = resolve(
            config, draw, begins=repeat == 0, resumed=None if resume is None or before is None else (resume, before),
            model=model if resume is None else None, stage=observer.stage,
        )  # fmt: skip
    config = plan.config
    with keeping_folder("the meter was opened"):
        meter, unavailable = open_meter(config.energy, plan.devices, config.tdp_w)
    with contextlib.ExitStack() as closing:
        closing.callback(meter.close)
        loaded = model.load(plan.model, plan.device, plan.formats, config.threads, observer.stage)
        if plan.before is not None and isinstance(products := plan.before.environment.get("products"), Mapping):
            blocks.choose_again(products)
        plan = plan.stored_in([one.info for one in loaded])
        engines = {}
        for one in loaded:
            name, timing = one.info.weights_format, Timing(measures=not config.untimed)
            if plan.before is not None:  # it goes on with the costs that it began with, and with bytes untimed
                timing = Timing(plan.before.model.stored(name).unit_times, measures=False)
            recorder = recorder_for(one.backbone, config.graphs)
            engines[name] = Engine(one.backbone, one.info, config.kv_input, timing, recorder)
        session = Session(plan, engines, meter)
        closing.callback(session.close)
        if session.idle_s:
            observer.stage(f"measuring the machine at rest for {session.idle_s:g} s")
        with keeping_folder("the model warmed up"):
            idle = session.rest()
            observer.stage("warming up")
            load = LoadWatch()
            began = time.perf_counter()
            warmup = session.warm_up()
            observer.stage(f"warmed up in {time.perf_counter() - began:.1f} s, examining the machine")
        here = any(isinstance(point.strategy, BlackBox) and point.strategy.local for point in plan.points)
        if repeat == 0 and plan.device.startswith("cpu") and not config.untimed and not here:  # its load is the run's
            _warn_of_others(load.read(), torch.get_num_threads())
        block_size = config.block_size if plan.before is None else plan.before.block_size
        if block_size is None:  # one batch, or as many as the energy sensor needs for a valid window
            block_size = samples_per_block(meter.sensor_period_s, session.whole_s, config.batch_size)
            block_size = max(block_size, 0 if config.arrival_rate is None else QUEUED_REQUESTS)
        times = {name: engine.timing.times for name, engine in engines.items()}
        manifest = describe_run(plan, loaded, meter, unavailable, block_size, times, placement)
        for line in guarantee_violations(plan, manifest):
            logger.warning("%s", line)
        path = resume or config.out or fresh_directory("-".join((real_path(config.model).name, *config.tasks)))
        with contextlib.ExitStack() as on_error:
            opened = (
                RunDirectory.create(path, manifest) if resume is None else RunDirectory.resume(path, manifest, lock)
            )
            store = on_error.enter_context(opened)
            session.measure(store, [*idle, *warmup], observer, repeat)
            on_error.pop_all()
    return store


def _warn_of_others(load: LoadReading | str, threads: int) -> None:
    """Say before anything is measured that the machine is not this run's alone; a short look would see ticks."""
    if isinstance(load, str) or load.span_s < SHORTEST_LOOK_S or load.foreign_share <= FOREIGN_SHARE:
        return
    fewer = threads_left(load.foreign_share, load.cores)
    cure = f"Stop them, or use --threads {fewer}" if threads > fewer else "Stop them"
    logger.warning("other processes take %.0f%% of the cores' time. %s", 100 * load.foreign_share, cure)


def _before(config: RunConfig, resume: Path | None) -> Manifest | None:
    """Look at the target directory before anything slow: it must be new, or be the run to resume."""
    if resume is not None:
        with RunDirectory.read(resume) as store:
            return store.manifest
    require_writable(config.out or Path("runs"), ConfigError)
    if config.out is not None and config.out.exists():
        refuse_occupied(config.out)
    return None


def describe_run(
    plan: Plan,
    loaded: Sequence[LoadedModel],
    meter: Meter,
    unavailable: dict[str, str],
    block_size: int,
    unit_times: Mapping[str, UnitTimes | None],
    placement: Mapping[str, str],
) -> Manifest:
    """Return the manifest: what ran, on what, from what; a run that goes on keeps its measured machine and bandwidth.

    ``loaded`` and ``unit_times``, seconds of each part of decoding that strategies were given, are by weights format.
    """
    own, *others = (_in_format(one, plan, unit_times[one.info.weights_format]) for one in loaded)
    info, before = loaded[0].info, plan.before
    surroundings = {**environment.describe(), "compiled": kernels.identity(), "products": blocks.choices()}
    surroundings["code"] = {**code_of_objects(point.record for point in plan.points), **surroundings["code"]}
    if before is not None:
        machine, bandwidth, detail = before.machine, before.bandwidth_bytes_per_s, before.bandwidth_detail
    elif plan.config.untimed:
        machine, bandwidth, detail = None, None, {"reason": "the run was not timed"}
    else:
        machine = examine(
            plan.device, plan.config.dtype, meter=meter.source, meter_description=meter.description,
            meter_measured=is_measured(meter), environment=surroundings,
            scores_missing=missing_scores({task.record.language for task in plan.tasks}),
            sensors=sensors_of_meter(meter, unavailable, plan.device),
        )  # fmt: skip
        bandwidth, detail = machine.bandwidth_bytes_per_s, {"reason": machine.missing.get("bandwidth")}
        if bandwidth is not None:
            names = ("kernel", "buffer_bytes", "cache_bytes", "limited_by")
            detail = {name: getattr(machine, f"bandwidth_{name}") for name in names} | {"threads": machine.threads}
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=plan.config.model_dump(mode="json"),
        operating_points=tuple(point.record for point in plan.points),
        model=ModelRecord(
            weights_source=loaded[0].weights_source,
            weights_sha256=loaded[0].weights_sha256,
            tokenizer_source=plan.model.tokenizer.source,
            tokenizer_stand_in=plan.model.tokenizer.stand_in,
            end_ids=tuple(sorted(plan.model.tokenizer.eos_token_ids)),
            other_formats=tuple(others),
            **shared_fields(info, ModelRecord) | dict(own),
        ),
        tasks=tuple(task.record for task in plan.tasks),
        meter=MeterRecord(
            **shared_fields(meter, MeterRecord) | {"measured": is_measured(meter), "unavailable": unavailable}
        ),
        block_size=block_size,
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_detail=detail,
        environment=surroundings,
        machine=machine,
        observed_thresholds=plan.observed,
        placement={**placement, **plan.placement},
    )
    scores = score_names(task.language for task in manifest.tasks)
    return manifest.model_copy(update={"plugins": used_plugins(manifest, scores)})


def _in_format(loaded: LoadedModel, plan: Plan, unit_times: UnitTimes | None) -> FormatRecord:
    """Describe a model in one weights format, and why ``auto`` took it where it did."""
    info, choice = loaded.info, loaded.format_choice
    why = None
    if plan.before is not None:
        why = plan.before.model.stored(info.weights_format).format_choice
    elif "auto" in plan.config.weights_formats and info.weights_format not in plan.config.weights_formats:
        why = FormatChoiceRecord(
            seconds_per_byte=dict(choice.seconds), left_out=dict(choice.left_out), measured=choice.measured
        )
    return FormatRecord(
        weights_accuracy=WEIGHTS_FORMATS.load(info.weights_format).facts.accuracy,
        format_choice=why,
        unit_times=unit_times,
        **shared_fields(info, FormatRecord),
    )


def _main(directory: str, repeat: str, lock: str | None = None) -> None:
    """Measure one repeat of a run that is on disk, for :func:`harness.running.repeats.run_repeat`."""
    reporter = Reporter()
    try:
        with RunDirectory.read(Path(directory)) as store:
            config = RunConfig.build({key: value for key, value in store.manifest.config.items() if key != "out"})
        held = None if lock is None else int(lock)
        with without_exit(), no_silent_end():
            _measure(config, Path(directory), int(repeat), reporter, KeptModel(), lock=held).close()
    except HarnessError as error:
        reporter.tell(refusal_message(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    _main(*sys.argv[1:])
