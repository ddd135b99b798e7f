"""Measures the windows of one run: what is timed, what is not, and what becomes a record.

Inside a window there is decoding and nothing else. Rehearsals of strategies that look at the answer come
before it; full depth's choices along what was generated, texts and scores after it. What else the machine did
is read at its edges, outside the clock. A window line commits its samples, so whatever is killed loses at most
the window it was in.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from zlib import crc32

from harness.appearance.visible_text import shell_word
from harness.contracts import Cursor, Meter, NamedStop, Sample
from harness.decoding.engine import Engine
from harness.decoding.generation import Generation
from harness.errors import MeterError, ModelError, OutOfMemoryError
from harness.metering import Surroundings, observed
from harness.metering.idle import default_idle_s, rest
from harness.metering.pacing import WARMUP_PASSES, settled
from harness.records import WindowRecord
from harness.running.arrivals import Schedule, poisson
from harness.running.completions import Outcome, bad_record, sample_record
from harness.running.manifest import is_out_of_memory, utc_now
from harness.running.operating_points import OperatingPoint
from harness.running.own_text import OwnText
from harness.running.plan import Plan, PlannedTask
from harness.running.windows import judged, window_record
from harness.store.run_directory import RunDirectory

__all__ = ["Observer", "Session"]


READY_PROMPT, READY_TOKENS = 16, 6
"""Tokens that an operating point reads and makes before anything is measured."""


class Observer(Protocol):
    """Is told how a run goes on; the command line draws a progress bar from it."""

    def stage(self, text: str) -> None:
        """Something slow begins."""

    def begin(self, total: int, done: int, directory: Path) -> None:
        """So many windows are to be measured, so many of them were before."""

    def window(self, record: WindowRecord) -> None:
        """A window is on disk."""


class Session:
    """Measures the windows of one plan.

    Args:
        plan: what runs.
        engines: decode it, by weights format, the run's own first.
        meter: opens the windows.
        surroundings: what else the machine does; by default that of the plan's device.
    """

    def __init__(
        self, plan: Plan, engines: Mapping[str, Engine], meter: Meter, surroundings: Surroundings | None = None
    ) -> None:
        self._plan, self._engines, self._meter = plan, engines, meter
        self._surroundings = surroundings or Surroundings.of(plan.device)
        self._rehearsed: dict[tuple[str, str, str], tuple[list[int], ModelError | None]] = {}

    @property
    def idle_s(self) -> float:
        """Seconds of each idle window; 0 for none."""
        given = self._plan.config.idle_s
        return default_idle_s(self._meter.sensor_period_s) if given is None else given

    def rest(self) -> list[WindowRecord]:
        """Measure the machine at rest with the model loaded; returns records still to be committed.

        Before the warm-up rather than after it, so that the first measured window finds the machine warm.
        """
        records: list[WindowRecord] = []
        while self.idle_s and (not records or records[-1].superseded):
            started = utc_now()
            record = window_record(
                rest(self._meter, self._surroundings, self.idle_s), window=0, task="", block=0, repeat=0,
                operating_point="", idle=True, samples=0, tokens=0, started=started,
            )  # fmt: skip
            records.append(judged(record, strict=self._plan.config.strict, attempts=len(records)))
        return records

    def warm_up(self) -> list[WindowRecord]:
        """Run full depth on the first batch, in each weights format, until its time settles.

        Returns records still to be committed; the last one of a format is flagged ``not-settled`` if it never did.
        """
        planned = self._plan.tasks[0]
        batch = planned.data.samples[: self._plan.config.batch_size]
        self._make_ready(planned, batch[0])
        records: list[WindowRecord] = []
        for name in self._engines:
            point = next(point for point in self._plan.points if point.weights_format == name)
            passes: list[WindowRecord] = []
            while len(passes) < WARMUP_PASSES and not settled([record.duration_s for record in passes]):
                number = len(records) + len(passes)
                record, _ = self._window(number, planned, 0, 0, point, [batch], warmup=True)
                passes.append(record)
            if not settled([record.duration_s for record in passes]):
                passes[-1] = passes[-1].model_copy(update={"flags": (*passes[-1].flags, "not-settled")})
            records.extend(passes)
        return records

    def _make_ready(self, planned: PlannedTask, sample: Sample) -> None:
        """Let every operating point decode a few tokens, so that none loads or makes in a window what it runs on."""
        few = replace(sample, prompt_ids=sample.prompt_ids[-READY_PROMPT:], max_new_tokens=READY_TOKENS)
        for point in self._plan.points:
            heads = point.strategy.cheap_heads()
            self._engines[point.weights_format].prepare(
                heads if point.lossless is None else (*heads, point.lossless.head)
            )
            try:
                self._decode(planned, point, [few])
            except ModelError:  # said of the sample that it happens to
                continue

    def measure(self, store: RunDirectory, before: Sequence[WindowRecord], observer: Observer, repeat: int = 0) -> None:
        """Measure every window of one repeat that is not on disk yet.

        Args:
            store: where they go.
            before: the records of :meth:`rest` and :meth:`warm_up`.
            observer: is told of every window that counts.
            repeat: which repeat; each has a process of its own, see :mod:`harness.running.repeats`.

        Raises:
            MeterError: the sensor failed, or a clock; what was finished is kept.
            OutOfMemoryError: memory ran out; what was finished is kept.
        """
        try:
            self._measure(store, before, observer, repeat)
        except MeterError as error:
            raise MeterError(
                f"{error} {len(store.finished())} finished windows are kept in {store.path}; when the meter works "
                f"again, continue with --resume {shell_word(store.path)}."
            ) from error

    def _measure(self, store: RunDirectory, before: Sequence[WindowRecord], observer: Observer, repeat: int) -> None:
        blocks = {task.record.name: self._blocks(task, store.manifest.block_size) for task in self._plan.tasks}
        count = sum(len(cut) for cut in blocks.values()) * len(self._plan.points)
        finished = store.finished()
        observer.begin(count * self._plan.config.repeats, len(finished), store.path)
        mine = sum(key[2] == repeat for key in finished)
        if mine == count and (not self.idle_s or _ends_at_rest(store) or len(finished) > mine):
            return
        _commit_bare(store, before)
        for planned in self._plan.tasks:
            for index, block in enumerate(blocks[planned.record.name]):
                own_text = OwnText(next(iter(self._engines.values())), self._plan.points[0]) if repeat == 0 else None
                for point in self._order(planned.record.name, index, repeat):
                    if (planned.record.name, index, repeat, point.name) in finished:
                        continue
                    observer.window(self._measure_one(store, planned, index, repeat, point, block, own_text))
        _commit_bare(store, self.rest())

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
        own_text: OwnText | None,
    ) -> WindowRecord:
        """Measure one window until it counts; under ``strict`` contaminated ones are kept as superseded."""
        size = self._plan.config.batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        key = (planned.record.name, block, repeat, point.name)
        while True:
            window, outcomes = self._attempt(store, planned, block, repeat, point, batches, own_text)
            records = [sample_record(window, self._plan, planned, outcome) for outcome in outcomes]
            if block == 0:
                records += [bad_record(window, planned, row) for row in planned.data.bad_rows]
            window = judged(window, strict=self._plan.config.strict, attempts=store.attempts(key)).model_copy(
                update={"samples": len(records), "failed": sum(record.error is not None for record in records)}
            )
            store.commit(window, records)
            if not window.superseded:
                return window

    def _attempt(
        self,
        store: RunDirectory,
        planned: PlannedTask,
        block: int,
        repeat: int,
        point: OperatingPoint,
        batches: Sequence[Sequence[Sample]],
        own_text: OwnText | None,
    ) -> tuple[WindowRecord, list[Outcome]]:
        size = self._plan.config.batch_size
        try:
            self._rehearse(planned, point, batches)
            window, outcomes = self._window(store.next_window, planned, block, repeat, point, batches)
            return window, outcomes if own_text is None else [own_text.of(point, outcome) for outcome in outcomes]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory in {planned.record.name}, block {block}, {point.name} (batch size {size}); "
                f"{len(store.finished())} finished windows are kept in {store.path}. "
                "Free memory and use --resume, or start again with a smaller --batch-size."
            ) from error

    def _rehearse(self, planned: PlannedTask, point: OperatingPoint, batches: Sequence[Sequence[Sample]]) -> None:
        """Let a strategy that looks at the answer do so outside the window; its exits are replayed inside."""
        if not point.strategy.rehearsed:
            return
        for batch in batches:
            keys = [(planned.record.name, point.name, sample.sample_id) for sample in batch]
            if all(key in self._rehearsed for key in keys):
                continue
            for key, sample, made in zip(keys, batch, self._decode(planned, point, batch), strict=True):
                layers = self._plan.model.info.num_layers
                stops = made.first_stops(layers)
                rest = sample.max_new_tokens - len(stops)  # where it failed the replay may go on
                self._rehearsed[key] = [*stops, *[layers] * rest], made.failure

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
    ) -> tuple[WindowRecord, list[Outcome]]:
        """Decode the batches of one block inside one measured window."""
        started = utc_now()
        schedule = None if warmup else self._schedule(planned, block, repeat, len(batches))
        results: list[list[Generation] | str] = []
        queued: list[float] = []
        with observed(self._meter, self._surroundings) as closed:
            opened = time.perf_counter()
            for place, batch in enumerate(batches):
                if schedule is not None:
                    queued.append(schedule.wait(place, opened))
                try:
                    results.append(self._decode_measured(planned, point, batch))
                except ModelError as error:
                    results.append(str(error))
        outcomes: list[Outcome] = []
        for place, (batch, result) in enumerate(zip(batches, results, strict=True)):
            each: list[Generation | str]
            each = [result] * len(batch) if isinstance(result, str) else [_or_why_not(made) for made in result]
            came = None if schedule is None else (schedule.arrivals_s[place], queued[place])
            outcomes.extend(Outcome(sample, made, came) for sample, made in zip(batch, each, strict=True))
        record = window_record(
            closed,
            window=number,
            task=planned.record.name,
            block=block,
            repeat=repeat,
            operating_point=point.name,
            warmup=warmup,
            samples=0,
            tokens=sum(len(o.made.token_ids) for o in outcomes if isinstance(o.made, Generation)),
            started=started,
        )
        return record, outcomes

    def _schedule(self, planned: PlannedTask, block: int, repeat: int, requests: int) -> Schedule | None:
        """Return when the requests of a block come, alike for every operating point; ``None`` back to back."""
        config = self._plan.config
        if config.arrival_rate is None:
            return None
        return poisson(config.arrival_rate, requests, (config.seed, planned.record.name, block, repeat))

    def _decode_measured(
        self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]
    ) -> list[Generation]:
        if not point.strategy.rehearsed:
            return self._decode(planned, point, batch)
        known = [self._rehearsed[planned.record.name, point.name, sample.sample_id] for sample in batch]
        replayed = self._engines[point.weights_format].replay(
            [sample.prompt_ids for sample in batch],
            [layers for layers, _ in known],
            kv=point.kv,
            max_new_tokens=[sample.max_new_tokens for sample in batch],
            stop=planned.stop,
            eos_token_ids=self._plan.model.tokenizer.eos_token_ids,
            lossless=point.lossless,
            rules=self._rules(planned, point, batch),
        )
        failures = (failure for _, failure in known)
        return [replace(made, failure=why or made.failure) for made, why in zip(replayed, failures, strict=True)]

    def _decode(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> list[Generation]:
        return self._engines[point.weights_format].decode(
            [sample.prompt_ids for sample in batch],
            point.strategy,
            kv=point.kv,
            max_new_tokens=[sample.max_new_tokens for sample in batch],
            seeds=[self._plan.config.seed + crc32(sample.sample_id.encode()) for sample in batch],
            stop=planned.stop,
            eos_token_ids=self._plan.model.tokenizer.eos_token_ids,
            lossless=point.lossless,
            rules=self._rules(planned, point, batch),
        )

    def _rules(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> list[NamedStop] | None:
        """Return the stop rule of each sample's completion."""
        if point.stop is None:
            return None
        model, language = self._plan.model, planned.task.language
        device = str(self._engines[point.weights_format].backbone.device)
        return [
            point.stop.start(Cursor(sample.prompt_ids, model.tokenizer, language, model.info, device))
            for sample in batch
        ]


def _or_why_not(made: Generation) -> Generation | str:
    return made if made.failure is None else str(made.failure)


def _commit_bare(store: RunDirectory, records: Sequence[WindowRecord]) -> None:
    """Write windows that have no samples, with the numbers that are next."""
    for record in records:
        store.commit(record.model_copy(update={"window": store.next_window}), [])


def _ends_at_rest(store: RunDirectory) -> bool:
    return any(window.idle for window in list(store.windows())[-1:])
