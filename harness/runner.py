"""Runs operating points over samples, interleaved, and writes every record as soon as it is final.

For each block of samples every operating point runs once per repeat, in random order, inside one
measured window, so that drift of the machine favours nobody and everything is paired. Decoding texts
and scoring them happens between windows. A window line commits its samples; whatever is killed loses
at most the window it was in.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

from harness import environment
from harness.config import RunConfig
from harness.contracts import BadRow, Meter, Sample
from harness.decoding.engine import Engine
from harness.decoding.generation import Generation
from harness.errors import ConfigError, HarnessError, ModelError, OutOfMemoryError, StoreError
from harness.metering import measure_bandwidth, metered, open_meter
from harness.models.loading import LoadedModel, load
from harness.plan import OperatingPoint, Plan, PlannedTask, default_directory, make_plan
from harness.records import (
    SCHEMA_VERSION,
    Manifest,
    MeterRecord,
    ModelRecord,
    SampleRecord,
    Summary,
    WindowRecord,
)
from harness.registry import TASKS
from harness.store import RunDirectory
from reports.export import to_frame, write_report
from reports.summarise import summarise

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Observer", "RunResult", "execute", "run", "summarise_directory"]

logger = logging.getLogger(__name__)

WARMUP_PASSES = 10
WARMUP_DRIFT = 0.02
SENSOR_PERIODS = 50  # a window should span so many ticks of the energy sensor


class Observer(Protocol):
    """Is told how a run goes on; the command line draws a progress bar from it."""

    def stage(self, text: str) -> None:
        """Something slow begins."""

    def begin(self, total: int, done: int, directory: Path) -> None:
        """So many windows are to be measured, so many of them were before."""

    def window(self, record: WindowRecord) -> None:
        """A window is on disk."""


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


def run(config: RunConfig, *, resume: Path | None = None) -> pd.DataFrame:
    """Run a configuration and return one row per task × operating point.

    Args:
        config: what to run.
        resume: a run directory to continue instead of making a new one.

    Raises:
        HarnessError: the run cannot be made, or could not go on.
    """
    return to_frame(execute(config, resume=resume).summary)


def execute(config: RunConfig, *, resume: Path | None = None, observer: Observer | None = None) -> RunResult:
    """Run a configuration, with progress reported to ``observer``; see :func:`run`."""
    import torch

    watch = observer or _Silent()
    before = _before(config, resume)
    watch.stage("checking the configuration and drawing samples")
    plan = make_plan(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    meter, unavailable = open_meter(config.energy, plan.device, config.tdp_w)
    try:
        watch.stage(f"loading {plan.model.info.name}")
        loaded = _load(plan)
        engine = Engine(loaded.backbone, plan.model.info)
        session = _Session(plan, engine, meter)
        watch.stage("warming up")
        warmup = session.warm_up()
        manifest = _manifest(plan, loaded, meter, unavailable, _block_size(config, before, meter, warmup), before)
        path = resume or config.out or default_directory(config, f"{datetime.now(UTC):%Y%m%d-%H%M%S}")
        with _open(path, manifest, resume=resume is not None) as store:
            session.measure(store, warmup, watch)
            watch.stage("scoring")
            summary = _summarise(store)
            write_report(summary, store.path)
    finally:
        meter.close()
    return RunResult(path, summary)


def summarise_directory(path: Path) -> Summary:
    """Summarise what a run directory holds so far.

    Raises:
        StoreError: missing, damaged or foreign directory, or one without a finished window.
    """
    with RunDirectory.read(path) as store:
        if not store.finished():
            raise StoreError(f"{path} holds no finished window yet. Continue it with `harness run --resume {path}`.")
        return _summarise(store)


def _summarise(store: RunDirectory) -> Summary:
    tasks: dict[str, Any] = {}

    def score_corpus(name: str, texts: Sequence[str], references: Sequence[str]) -> dict[str, float | None]:
        task = tasks.setdefault(name, TASKS.load(name)())
        scores: dict[str, float | None] = task.score_corpus(texts, references)
        return scores

    manifest = store.manifest
    line = environment.machine_line(manifest.environment)
    return summarise(manifest, store.windows(), store.samples(), score_corpus, machine=line)


def _before(config: RunConfig, resume: Path | None) -> Manifest | None:
    """Look at the target directory before anything slow: it must be new, or be the run to resume."""
    if resume is not None:
        with RunDirectory.read(resume) as store:
            return store.manifest
    if config.out is not None and config.out.exists():
        if not config.out.is_dir():
            raise ConfigError(f"--out {config.out} is a file.")
        if any(config.out.iterdir()):
            raise StoreError(
                f"{config.out} is not empty. Continue it with `harness run --resume {config.out}`, or use another --out."
            )
    return None


def _load(plan: Plan) -> LoadedModel:
    try:
        return load(plan.model, device=plan.device, seed=plan.config.seed)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory loading {plan.model.info.name} in {plan.config.dtype}. "
            "Use --dtype bfloat16 or a smaller --model."
        ) from error


def _open(path: Path, manifest: Manifest, *, resume: bool) -> RunDirectory:
    return RunDirectory.resume(path, manifest) if resume else RunDirectory.create(path, manifest)


def _block_size(config: RunConfig, before: Manifest | None, meter: Meter, warmup: Sequence[WindowRecord]) -> int:
    """Samples per block: one batch, or as many as the energy sensor needs for a valid window."""
    if before is not None:
        return before.block_size
    if config.block_size is not None:
        return config.block_size
    batches = 1
    if meter.sensor_period_s is not None and warmup:
        fastest = min(record.duration_s for record in warmup) / 4  # an early exit may be four times as fast
        batches = max(1, round(SENSOR_PERIODS * meter.sensor_period_s / fastest + 0.5))
    return batches * config.batch_size


def _manifest(
    plan: Plan,
    loaded: LoadedModel,
    meter: Meter,
    unavailable: dict[str, str],
    block_size: int,
    before: Manifest | None,
) -> Manifest:
    info = plan.model.info
    bandwidth, detail = _bandwidth(plan) if before is None else (before.bandwidth_bytes_per_s, before.bandwidth_detail)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created=_now(),
        config=plan.config.model_dump(mode="json"),
        operating_points=tuple(point.record for point in plan.points),
        model=ModelRecord(
            name=info.name,
            family=info.family,
            weights=info.weights,
            weights_source=loaded.weights_source,
            weights_sha256=loaded.weights_sha256,
            tokenizer_source=plan.codec_source,
            tokenizer_stand_in=plan.codec_source.startswith("stand-in"),
            num_layers=info.num_layers,
            hidden_size=info.hidden_size,
            vocab_size=info.vocab_size,
            exit_points=info.exit_points,
            dtype=info.dtype,
            layer_bytes=info.layer_bytes,
            lm_head_bytes=info.lm_head_bytes,
            kv_projection_bytes=info.kv_projection_bytes,
            kv_entry_bytes=info.kv_entry_bytes,
        ),
        tasks=tuple(task.record for task in plan.tasks),
        meter=MeterRecord(
            source=meter.source,
            description=meter.description,
            sensor_period_s=meter.sensor_period_s,
            unavailable=unavailable,
        ),
        block_size=block_size,
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_detail=detail,
        environment=environment.describe(),
    )


def _bandwidth(plan: Plan) -> tuple[float | None, dict[str, Any]]:
    try:
        reading = measure_bandwidth(plan.config.dtype, plan.device)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        return None, {"reason": "no memory left for the measurement"}
    detail = {
        "kernel": reading.kernel,
        "buffer_bytes": reading.buffer_bytes,
        "cache_bytes": reading.cache_bytes,
        "limited_by": reading.limited_by,
        "threads": reading.threads,
    }
    return reading.bytes_per_s, detail


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


class _Session:
    """Measures the windows of one plan with one engine."""

    def __init__(self, plan: Plan, engine: Engine, meter: Meter) -> None:
        self._plan, self._engine, self._meter = plan, engine, meter
        self._rehearsed: dict[tuple[str, str, str], list[int]] = {}

    def warm_up(self) -> list[WindowRecord]:
        """Run full depth on the first batch until its time settles; returns records still to be committed."""
        planned, point = self._plan.tasks[0], self._plan.points[0]
        batch = planned.data.samples[: self._plan.config.batch_size]
        records: list[WindowRecord] = []
        while len(records) < WARMUP_PASSES and not _settled(records):
            record, _ = self._window(len(records), planned, 0, 0, point, [batch], warmup=True)
            records.append(record)
        return records

    def measure(self, store: RunDirectory, warmup: Sequence[WindowRecord], watch: Observer) -> None:
        """Measure every window that is not on disk yet."""
        config = self._plan.config
        blocks = {task.record.name: self._blocks(task, store.manifest.block_size) for task in self._plan.tasks}
        total = sum(len(cut) for cut in blocks.values()) * config.repeats * len(self._plan.points)
        finished = store.finished()
        watch.begin(total, len(finished), store.path)
        if len(finished) == total:
            return
        for record in warmup:
            store.commit(record.model_copy(update={"window": store.next_window}), [])
        for planned in self._plan.tasks:
            for index, block in enumerate(blocks[planned.record.name]):
                for repeat in range(config.repeats):
                    for point in self._order(planned.record.name, index, repeat):
                        if (planned.record.name, index, repeat, point.name) in finished:
                            continue
                        watch.window(self._measure_one(store, planned, index, repeat, point, block))

    def _blocks(self, planned: PlannedTask, size: int) -> list[Sequence[Sample]]:
        samples = planned.data.samples
        return [samples[start : start + size] for start in range(0, len(samples), size)]

    def _order(self, task: str, block: int, repeat: int) -> list[OperatingPoint]:
        """Operating points of one block in an order that a resumed run draws again."""
        order = list(self._plan.points)
        random.Random(f"{self._plan.config.seed} {task} {block} {repeat}").shuffle(order)
        return order

    def _measure_one(
        self,
        store: RunDirectory,
        planned: PlannedTask,
        block: int,
        repeat: int,
        point: OperatingPoint,
        samples: Sequence[Sample],
    ) -> WindowRecord:
        size = self._plan.config.batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        try:
            self._rehearse(planned, point, batches)
            window, outcomes = self._window(store.next_window, planned, block, repeat, point, batches)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory in {planned.record.name}, block {block}, {point.name} (batch size {size}); "
                f"{len(store.finished())} finished windows are kept in {store.path}. "
                "Free memory and use --resume, or start again with a smaller --batch-size."
            ) from error
        records = [self._record(window, planned, sample, outcome) for sample, outcome in outcomes]
        if block == 0:
            records += [_bad_record(window, planned, row) for row in planned.data.bad_rows]
        window = window.model_copy(
            update={"samples": len(records), "failed": sum(record.error is not None for record in records)}
        )
        store.commit(window, records)
        return window

    def _rehearse(self, planned: PlannedTask, point: OperatingPoint, batches: Sequence[Sequence[Sample]]) -> None:
        """Let a strategy that looks at the answer do so outside the window; its exits are replayed inside."""
        if not point.strategy.rehearsed:
            return
        for batch in batches:
            keys = [(planned.record.name, point.name, sample.sample_id) for sample in batch]
            if all(key in self._rehearsed for key in keys):
                continue
            for key, outcome in zip(keys, self._decode(planned, point, batch), strict=True):
                self._rehearsed[key] = outcome.exit_layers

    def _window(
        self,
        number: int,
        planned: PlannedTask,
        block: int,
        repeat: int,
        point: OperatingPoint,
        batches: Sequence[Sequence[Sample]],
        *,
        warmup: bool = False,
    ) -> tuple[WindowRecord, list[tuple[Sample, Generation | str]]]:
        """Decode the batches of one block inside one measured window."""
        started = _now()
        results: list[list[Generation] | str] = []
        with metered(self._meter) as measured:
            for batch in batches:
                try:
                    results.append(self._decode_measured(planned, point, batch))
                except ModelError as error:
                    results.append(str(error))
        reading = measured.reading
        outcomes: list[tuple[Sample, Generation | str]] = []
        for batch, result in zip(batches, results, strict=True):
            each = [result] * len(batch) if isinstance(result, str) else result
            outcomes.extend(zip(batch, each, strict=True))
        record = WindowRecord(
            window=number,
            task=planned.record.name,
            block=block,
            repeat=repeat,
            operating_point=point.name,
            warmup=warmup,
            samples=0,
            tokens=sum(len(o.token_ids) for _, o in outcomes if isinstance(o, Generation)),
            started=started,
            duration_s=reading.duration_s,
            cpu_time_s=reading.cpu_time_s,
            energy_j=reading.energy_j,
            energy_source=reading.source,
            energy_scope=reading.scope,
            sensor_period_s=reading.sensor_period_s,
            flags=reading.flags,
            energy_reason=reading.reason,
        )
        return record, outcomes

    def _decode_measured(
        self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]
    ) -> list[Generation]:
        if not point.strategy.rehearsed:
            return self._decode(planned, point, batch)
        known = [self._rehearsed[planned.record.name, point.name, sample.sample_id] for sample in batch]
        return self._engine.replay(
            [sample.prompt_ids for sample in batch],
            known,
            kv=self._plan.config.kv,
            max_new_tokens=[sample.max_new_tokens for sample in batch],
            stop=planned.stop,
            eos_token_ids=self._plan.codec.eos_token_ids,
        )

    def _decode(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> list[Generation]:
        return self._engine.decode(
            [sample.prompt_ids for sample in batch],
            point.strategy,
            kv=self._plan.config.kv,
            max_new_tokens=[sample.max_new_tokens for sample in batch],
            seeds=[self._plan.config.seed + crc32(sample.sample_id.encode()) for sample in batch],
            stop=planned.stop,
            eos_token_ids=self._plan.codec.eos_token_ids,
        )

    def _record(
        self, window: WindowRecord, planned: PlannedTask, sample: Sample, outcome: Generation | str
    ) -> SampleRecord:
        base: dict[str, Any] = {
            "window": window.window,
            "operating_point": window.operating_point,
            "task": window.task,
            "repeat": window.repeat,
            "sample_id": sample.sample_id,
            "prompt_ids": sample.prompt_ids,
            "reference_ids": sample.reference_ids,
            "reference": sample.reference,
        }
        if isinstance(outcome, str):
            return SampleRecord(**base, error=outcome)
        codec, protocol = self._plan.codec, self._plan.config.protocol
        spoken = outcome.token_ids[:-1] if outcome.finish_reason == "eos" else outcome.token_ids
        text = planned.task.completion(protocol, codec.decode(spoken))
        return SampleRecord(
            **base,
            token_ids=tuple(outcome.token_ids),
            exit_layers=tuple(outcome.exit_layers),
            token_times_s=tuple(round(t, 7) for t in outcome.token_times_s),
            text=text,
            scores=planned.task.score(text, sample.reference, outcome.token_ids, sample.reference_ids),
            latency_s=outcome.token_times_s[-1],
            ttft_s=outcome.token_times_s[0],
            finish_reason=outcome.finish_reason,
            exit_checks=outcome.exit_checks,
            lm_head_evaluations=outcome.lm_head_evaluations,
            layers_executed=outcome.layers_executed,
            kv_fill_layers=outcome.kv_fill_layers,
        )


def _bad_record(window: WindowRecord, planned: PlannedTask, row: BadRow) -> SampleRecord:
    return SampleRecord(
        window=window.window,
        operating_point=window.operating_point,
        task=planned.record.name,
        sample_id=row.sample_id,
        repeat=window.repeat,
        error=row.reason,
    )


def _settled(records: Sequence[WindowRecord]) -> bool:
    """Whether the last three passes differ by less than the allowed drift."""
    last = [record.duration_s for record in records[-3:]]
    return len(last) == 3 and (max(last) - min(last)) / min(last) < WARMUP_DRIFT
