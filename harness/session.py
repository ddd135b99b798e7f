"""Measures the windows of one run: what is timed, what is not, and what becomes a record.

Inside a window there is decoding and nothing else. Rehearsals of strategies that look at the answer come
before it; texts and scores after it. A window line commits its samples, so whatever is killed loses at most
the window it was in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

from harness.contracts import BadRow, Meter, Sample
from harness.decoding.engine import Engine
from harness.decoding.generation import Generation
from harness.errors import ModelError, OutOfMemoryError
from harness.manifest import is_out_of_memory, utc_now
from harness.metering import metered
from harness.operating_points import OperatingPoint
from harness.plan import Plan, PlannedTask
from harness.records import SampleRecord, WindowRecord
from harness.store import RunDirectory

__all__ = ["Observer", "Session"]

WARMUP_PASSES = 10
WARMUP_DRIFT = 0.02


class Observer(Protocol):
    """Is told how a run goes on; the command line draws a progress bar from it."""

    def stage(self, text: str) -> None:
        """Something slow begins."""

    def begin(self, total: int, done: int, directory: Path) -> None:
        """So many windows are to be measured, so many of them were before."""

    def window(self, record: WindowRecord) -> None:
        """A window is on disk."""


class Session:
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
            if not is_out_of_memory(error):
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
        started = utc_now()
        results: list[list[Generation] | str] = []
        with metered(self._meter) as measured:
            for batch in batches:
                try:
                    results.append(self._decode_measured(planned, point, batch))
                except ModelError as error:
                    results.append(str(error))
        reading = measured.reading
        assert reading is not None
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
            kv=point.kv,
            max_new_tokens=[sample.max_new_tokens for sample in batch],
            stop=planned.stop,
            eos_token_ids=self._plan.codec.eos_token_ids,
        )

    def _decode(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> list[Generation]:
        return self._engine.decode(
            [sample.prompt_ids for sample in batch],
            point.strategy,
            kv=point.kv,
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
            shortcut_evaluations=outcome.shortcut_evaluations,
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
