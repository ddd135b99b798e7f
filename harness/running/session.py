"""Measures the windows of one run: what is timed, what is not, and what becomes a record.

Inside a window there is what completes the samples (:mod:`harness.running.completions`) and nothing else; rehearsals
come before it, full depth's choices, texts and scores after it. A window's line commits its samples.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from harness.appearance.visible_text import shell_word
from harness.contracts import Meter, Sample
from harness.decoding.engine import Engine
from harness.errors import MeterError, OutOfMemoryError
from harness.metering import CONTAMINATED, ObservedWindow, Surroundings, observed
from harness.metering.contamination import default_idle_s, rest
from harness.metering.counters import WARMUP_PASSES, settled
from harness.records import WindowRecord
from harness.registry import keeping_folder, ran_out_of_memory
from harness.running.completions import Made, Outcome, OwnText, bad_record, runners, sample_record, tokens_of
from harness.running.operating_points import OperatingPoint
from harness.running.plan import Plan, PlannedTask, shared_fields
from harness.store.run_directory import RunDirectory, WindowKey

ATTEMPTS = 3
"""How often ``--strict`` measures a contaminated window at most; the last time counts, with its flags."""
READY_PROMPT, READY_TOKENS = 16, 8
"""Tokens that an operating point reads and makes before anything is measured."""


def wait_until(due: float) -> float:
    """Sleep until a request is there, a ``time.perf_counter()``, and return how long it has waited already, seconds."""
    while (early := due - time.perf_counter()) > 0:
        time.sleep(early)
    return time.perf_counter() - due


def poisson(rate_per_s: float, requests: int, seed: Sequence[object]) -> tuple[float, ...]:
    """Draw the arrivals of some requests, seconds from the start: exponential gaps with mean ``1 / rate_per_s``."""
    chance = random.Random(" ".join(map(str, seed)))
    now, arrivals = 0.0, []
    for _ in range(requests):
        now += chance.expovariate(rate_per_s)
        arrivals.append(now)
    return tuple(arrivals)


def in_blocks(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """Yield so many samples at a time, the last time fewer; an editor session is never divided."""
    block: list[Sample] = []
    for _, session in groupby(samples, key=lambda sample: sample.session or sample.sample_id):
        block.extend(session)
        if len(block) >= size:
            yield block
            block = []
    if block:
        yield block


def durations(windows: Iterable[WindowRecord]) -> list[float]:
    """Return the seconds of those windows that were timed."""
    return [window.duration_s for window in windows if window.duration_s is not None]


class Observer(Protocol):
    """Is notified of a run's progress; the command line draws a progress bar from it."""

    def stage(self, text: str) -> None:
        """Something slow begins."""

    def begin(self, total: int, done: int, directory: Path) -> None:
        """The run has ``total`` windows, ``done`` of which were measured before."""

    def window(self, record: WindowRecord) -> None:
        """A window is on disk."""


@dataclass(frozen=True)
class _Cell:
    """One window: batches of a block of a task's samples, decoded together, at one operating point."""

    task: PlannedTask
    block: int
    repeat: int
    point: OperatingPoint
    batches: Sequence[Sequence[Sample]]

    @property
    def key(self) -> WindowKey:
        """Tells it from every other one in the run."""
        return self.task.record.name, self.block, self.repeat, self.point.name


class Session:
    """Measures the windows of one plan, with engines by weights format, the run's own first.

    Attributes:
        whole_s: seconds of a whole batch in each weights format, once the warm-up has measured it.
    """

    def __init__(self, plan: Plan, engines: Mapping[str, Engine], meter: Meter) -> None:
        self._plan, self._config, self._engines, self._meter = plan, plan.config, engines, meter
        self._surroundings = Surroundings.of(plan.device)
        self._runners = runners(plan, engines, meter)
        self.whole_s: list[float] = []

    @property
    def idle_s(self) -> float:
        """Seconds of each idle window; 0 for none."""
        if self._config.untimed:
            return 0.0
        given = self._config.idle_s
        return default_idle_s(self._meter.sensor_period_s) if given is None else given

    def rest(self) -> list[WindowRecord]:
        """Measure the machine at rest with the model loaded; returns records still to be committed.

        Before the warm-up rather than after it, so that the first measured window finds the machine warm.
        """
        records: list[WindowRecord] = []
        while self.idle_s and (not records or records[-1].superseded):
            started = _now()
            closed = rest(self._meter, self._surroundings, self.idle_s)
            record = self._record(closed, task="", started=started, operating_point="", idle=True, tokens=0)
            records.append(self._judged(record, len(records)))
        return records

    def warm_up(self) -> list[WindowRecord]:
        """Run full depth on the first batch, in each weights format, and then decode until its time settles.

        A prompt takes as long as many tokens, and is read once: it is decoding that has to settle. Returns records
        still to be committed, of each format first the whole batch's; the last one of a format is flagged
        ``not-settled`` if it never did.
        """
        planned = self._plan.tasks[0]
        batch = [replace(sample, session="") for sample in planned.data.samples[: self._config.batch_size]]
        few = [
            replace(sample, prompt_ids=sample.prompt_ids[-READY_PROMPT:], max_new_tokens=READY_TOKENS)
            for sample in batch
        ]
        records: list[WindowRecord] = []
        try:
            for point in self._plan.points:  # none loads or makes in a window what it runs on
                self._runners[point.name].prepare(point)
                self._runners[point.name].complete(
                    planned, point, few[:1]
                )  # a failure is that of the sample that has it
            for name in self._engines:
                point = next(point for point in self._plan.points if point.weights_format == name)
                passes: list[WindowRecord] = []
                wanted = 1 if self._config.untimed else WARMUP_PASSES
                while len(passes) < wanted and not settled(durations(passes[1:])):
                    cell = _Cell(planned, 0, 0, point, [few if passes else batch])
                    passes.append(self._window(len(records) + len(passes), cell, warmup=True)[0])
                self.whole_s.extend(durations(passes[:1]))
                if not self._config.untimed and not settled(durations(passes[1:])):
                    passes[-1] = passes[-1].model_copy(update={"flags": (*passes[-1].flags, "not-settled")})
                records.extend(passes)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory while warming up with a batch of {self._config.batch_size}; nothing was measured "
                "yet. Use a smaller --batch-size, --dtype bfloat16 or a smaller --model."
            ) from error
        return records

    def measure(self, store: RunDirectory, before: Sequence[WindowRecord], observer: Observer, repeat: int = 0) -> None:
        """Measure every window of one repeat that is not on disk yet, after the records of its rest and warm-up.

        Raises:
            MeterError, OutOfMemoryError: what was finished is kept.
        """
        try:
            self._measure(store, before, observer, repeat)
        except MeterError as error:
            raise MeterError(
                f"{error} {len(store.finished())} finished windows are kept in {store.path}; when the meter works "
                f"again, continue with --resume {shell_word(store.path)}."
            ) from error

    def close(self) -> None:
        """Let go of what completes the samples."""
        for runner in self._runners.values():
            runner.close()

    def _measure(self, store: RunDirectory, before: Sequence[WindowRecord], observer: Observer, repeat: int) -> None:
        plan, size, together = self._plan, store.manifest.block_size, self._config.batch_size

        def commit_bare(records: Sequence[WindowRecord]) -> None:
            """Write windows that have no samples, with the numbers that are next."""
            for record in records:
                store.commit(record.model_copy(update={"window": store.next_window}), [])

        blocks = [
            (task, number, samples)
            for task in plan.tasks
            for number, samples in enumerate(in_blocks(task.data.samples, size))
        ]
        count, finished = len(blocks) * len(plan.points), store.finished()
        observer.begin(count * self._config.repeats, len(finished), store.path)
        mine = sum(key[2] == repeat for key in finished)
        at_rest = any(window.idle for window in list(store.windows())[-1:])
        if mine == count and (not self.idle_s or at_rest or len(finished) > mine):
            return
        commit_bare(before)
        for task, number, samples in blocks:
            own_text = OwnText(next(iter(self._engines.values())), plan.points[0]) if repeat == 0 else None
            batches = [samples[start : start + together] for start in range(0, len(samples), together)]
            cells = [_Cell(task, number, repeat, point, batches) for point in plan.points]
            # a resumed run draws the same order again
            random.Random(f"{self._config.seed} {task.record.name} {number} {repeat}").shuffle(cells)
            for cell in cells:
                if cell.key not in finished:
                    observer.window(self._measure_one(store, cell, own_text))
        commit_bare(self.rest())

    def _measure_one(self, store: RunDirectory, cell: _Cell, own_text: OwnText | None) -> WindowRecord:
        """Measure one window until it counts; under ``strict`` contaminated ones are kept as superseded."""
        while True:
            window, outcomes = self._attempt(store, cell, own_text)
            with keeping_folder("completions were scored"):
                records = [sample_record(window, self._plan, cell.task, outcome) for outcome in outcomes]
            if cell.block == 0:
                in_session = self._config.session is not None
                records += [bad_record(window, row, in_session=in_session) for row in cell.task.data.bad_rows]
            window = self._judged(window, store.attempts(cell.key)).model_copy(
                update={"samples": len(records), "failed": sum(record.error is not None for record in records)}
            )
            store.commit(window, records)
            if not window.superseded:
                return window

    def _attempt(
        self, store: RunDirectory, cell: _Cell, own_text: OwnText | None
    ) -> tuple[WindowRecord, list[Outcome]]:
        point = cell.point
        try:
            with keeping_folder(f"{point.name} decoded"):
                for batch in cell.batches:
                    self._runners[point.name].rehearse(cell.task, point, batch)
                window, outcomes = self._window(store.next_window, cell)
            return window, outcomes if own_text is None else [own_text.of(point, outcome) for outcome in outcomes]
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory in {cell.task.record.name}, block {cell.block}, {point.name} (batch size "
                f"{self._config.batch_size}); {len(store.finished())} finished windows are kept in {store.path}. "
                "Free memory and use --resume, or start again with a smaller --batch-size."
            ) from error

    def _window(self, number: int, cell: _Cell, *, warmup: bool = False) -> tuple[WindowRecord, list[Outcome]]:
        """Complete the batches of one block inside one measured window.

        Requests come back to back, or at a fixed rate whatever the machine manages (a Poisson process).
        """
        task, block, repeat, rate = cell.task.record.name, cell.block, cell.repeat, self._config.arrival_rate
        arrivals: tuple[float, ...] = ()
        if rate is not None and not warmup:  # alike for every operating point
            arrivals = poisson(rate, len(cell.batches), (self._config.seed, task, block, repeat))
        started, runner = _now(), self._runners[cell.point.name]
        results: list[Sequence[Made]] = []
        queued: list[float] = []
        with observed(self._meter, self._surroundings) as closed:
            opened = time.perf_counter()
            for place, batch in enumerate(cell.batches):
                if arrivals:
                    queued.append(wait_until(opened + arrivals[place]))
                results.append(runner.complete(cell.task, cell.point, batch))
        outcomes: list[Outcome] = []
        for place, (batch, each) in enumerate(zip(cell.batches, results, strict=True)):
            came = (arrivals[place], queued[place]) if arrivals else None
            outcomes.extend(Outcome(sample, made, came) for sample, made in zip(batch, each, strict=True))
        record = self._record(
            closed, window=number, task=task, block=block, repeat=repeat, operating_point=cell.point.name,
            warmup=warmup, tokens=tokens_of(outcomes), started=started,
        )  # fmt: skip
        return runner.counted(record, cell.point), outcomes

    def _record(self, closed: ObservedWindow, **facts: Any) -> WindowRecord:
        """Return the record of a closed window; of one that is not timed, neither times nor what disturbed them."""
        reading, contamination = closed.reading, closed.contamination
        assert reading is not None, "the window is open, or its work raised"
        assert contamination is not None
        facts = {"window": 0, "block": 0, "repeat": 0, "samples": 0, "duration_s": None, "cpu_time_s": None, **facts}
        facts |= {"energy_source": reading.source, "energy_reason": reading.reason}
        if not self._config.untimed:
            facts |= shared_fields(reading, WindowRecord) | shared_fields(contamination, WindowRecord)
            facts |= {"energy_scope": reading.scope, "flags": (*reading.flags, *contamination.flags)}
        return WindowRecord(**facts)

    def _judged(self, window: WindowRecord, attempts: int) -> WindowRecord:
        """Return the record, marked superseded if it is measured again, as it was ``attempts`` times before."""
        dirty = self._config.strict and not CONTAMINATED.isdisjoint(window.flags)
        return window.model_copy(update={"superseded": True}) if dirty and attempts + 1 < ATTEMPTS else window


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
