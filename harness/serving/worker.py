"""The one thread that decodes for all requests: they wait in a bounded queue, and join and leave between tokens.

Prompts are read in the order in which they came, one at a time, and in pieces: between two of these every running
request makes or drafts a token. So a long prompt delays a token by no more than a piece; the first tokens of requests
that came later it does delay. A request that is cancelled, late or fails leaves without affecting the others. Requests
that run at the same time share the energy that is measured equally.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from harness.contracts import Cursor, Meter, Tokenizer
from harness.decoding.engine import Engine
from harness.decoding.exits import RowExits
from harness.decoding.generation import Generation, Token, Transcript
from harness.decoding.loop import OpenBatch
from harness.errors import is_out_of_memory, reason
from harness.records import Work
from harness.serving.completions import (
    DrainingError,
    Ending,
    EngineTicket,
    Finished,
    GenerationError,
    OverloadedError,
    ServingError,
)
from harness.serving.config import ServeConfig
from harness.serving.metrics import Metrics


class Served:
    """One request while it occupies a row, from its first prefill to its ending: its text, tokens and time.

    Args:
        ticket: the job and its reader.
        tokenizer: the model's.
        special: ids that add no text.

    Attributes:
        ticket: the same.
        prompt_reused: tokens at the prompt's beginning that were not read again.
    """

    def __init__(self, ticket: EngineTicket, tokenizer: Tokenizer, special: frozenset[int]) -> None:
        self.ticket = ticket
        self.prompt_reused = 0
        self._began = time.perf_counter()
        job = ticket.job
        self._transcript = Transcript(
            tokenizer, job.stop, keep_stop=job.keep_stop, silent=special, after=job.prompt.token_ids
        )

    def stop(self, token_ids: Sequence[int]) -> bool:
        """Return whether a stop text is complete in these tokens, drafted ones included: the stop rule of its row."""
        return self._transcript.follow(token_ids)

    def tokens(self, made: Generation) -> tuple[list[Token], Ending | None]:
        """Return the tokens that were made since the last call, and why the last of them ends it."""
        new = len(made.token_ids) - len(self._transcript.tokens)
        if not new:
            return [], made.finish_reason
        ending: Ending | None = made.finish_reason or ("deadline" if self._is_late(made) else None)
        return [
            self._transcript.read(made, last=ending is not None and left == 0) for left in reversed(range(new))
        ], ending

    def finished(
        self,
        made: Generation,
        ending: Ending,
        kv: str,
        num_layers: int,
        energy_j: float | None,
        energy_source: str,
    ) -> Finished:
        """Return the ending, after its last token."""
        text = self._transcript.finish()
        return Finished(
            text=text,
            rest=self._transcript.rest(),
            ending="stop" if self._transcript.stopped else ending,
            tokens=tuple(self._transcript.tokens),
            prompt=self.ticket.job.prompt,
            prompt_reused=self.prompt_reused,
            setting=self.ticket.job.setting,
            kv=kv,
            num_layers=num_layers,
            work=Work.of(made),
            queue_s=self._began - self.ticket.submitted,
            ttft_s=self._transcript.tokens[0].time_s,
            total_s=self._transcript.tokens[-1].time_s,
            energy_j=energy_j,
            energy_source=energy_source,
            stopped_by=made.stopped_by,
        )

    def _is_late(self, made: Generation) -> bool:
        """Whether the deadline is over, or its own time is and it has a whole line: half a line is useless."""
        now, limit_s = time.perf_counter(), self.ticket.job.generate_s
        over = limit_s is not None and now > self.ticket.submitted + made.token_times_s[0] + limit_s
        return now > self.ticket.deadline or (over and "\n" in self._transcript.text)


logger = logging.getLogger(__name__)


class EnergyShares:
    """Cuts time where a request begins or ends, and splits each cut's energy among those that ran in it.

    Shares add up to what was measured while any request ran. A cut shorter than the sensor's tick is imprecise;
    over several requests the errors cancel.

    Args:
        meter: opens the windows; closed by its owner.
    """

    def __init__(self, meter: Meter) -> None:
        self.source = meter.source
        self._meter: Meter | None = meter
        self._energy_j: dict[int, float | None] = {}  # of each row that runs
        self._open = False

    def begin(self, row: int) -> None:
        """A request begins in a row."""
        self._cut()
        self._energy_j[row] = None if self._meter is None else 0.0
        self._start()

    def end(self, row: int) -> float | None:
        """A row's request ended, if one ran there: returns its joules, ``None`` when there is no number."""
        if row not in self._energy_j:
            return None
        self._cut()
        energy_j = self._energy_j.pop(row)
        self._start()
        return energy_j

    def _start(self) -> None:
        if self._meter is not None and self._energy_j:
            try:
                self._meter.begin()
                self._open = True
            except Exception as error:  # a meter may be a plug-in
                self._give_up(error)

    def _cut(self) -> None:
        if not self._open or self._meter is None:
            return
        self._open = False
        try:
            used_j = self._meter.end().energy_j
        except Exception as error:  # a meter may be a plug-in
            self._give_up(error)
            return
        for row, before in self._energy_j.items():
            share = None if before is None or used_j is None else before + used_j / len(self._energy_j)
            self._energy_j[row] = share

    def _give_up(self, error: Exception) -> None:
        """Continue without energy: the completion matters more."""
        logger.warning("energy is not measured from now on: %s", error)
        self._meter, self.source, self._open = None, "none", False
        self._energy_j = dict.fromkeys(self._energy_j)


PROMPTS = logging.getLogger("harness.serving.prompts")
"""Logs prompts and completions, one JSON text each, with ``--log-prompts``."""


class Worker:
    """Decodes what is submitted. :meth:`run` is the thread; everything else may be called from any other.

    Args:
        engine: decodes.
        tokenizer: the model's. special: ids that add no text.
        config: rows, queue, KV policy, pieces of prompts and how many are kept.
        positions: longest prompt and completion together.
        energy: attributes energy to requests.
        metrics: count completions.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        special: frozenset[int],
        config: ServeConfig,
        positions: int,
        energy: EnergyShares,
        metrics: Metrics,
    ) -> None:
        self._engine, self._tokenizer, self._config, self._positions = engine, tokenizer, config, positions
        self._special, self._energy, self._metrics = special, energy, metrics
        self._queue: deque[EngineTicket] = deque()
        self._served: dict[int, Served] = {}
        self._changed = threading.Condition()
        self._drain_until: float | None = None
        self._batch: OpenBatch | None = None
        self._open()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that are being decoded."""
        return len(self._served)

    def submit(self, ticket: EngineTicket) -> None:
        """Queue a ticket.

        Raises:
            OverloadedError: the queue is full.
            DrainingError: no more requests are accepted.
        """
        with self._changed:
            if self._drain_until is not None:
                raise DrainingError("the server is shutting down. Use another one.")
            waiting = sum(not ticket.cancelled for ticket in list(self._queue))
            running = sum(not served.ticket.cancelled for served in list(self._served.values()))
            if waiting >= self._config.max_queue + self._config.batch_size - running:
                raise OverloadedError(
                    f"{running} requests run and {waiting} wait, which is the limit. Try again later."
                )
            self._queue.append(ticket)
            self._changed.notify()

    def drain(self, seconds: float) -> None:
        """Accept no new requests; accepted ones get so many seconds. :meth:`run` then returns."""
        # No lock: a signal handler may interrupt the thread that holds it.
        self._drain_until = time.perf_counter() + seconds

    def run(self) -> None:
        """Decode until drained.

        Raises:
            Exception: a defect. Every waiting request has failed with it, and no more requests are accepted.
        """
        try:
            self._run()
        except BaseException:
            self._drain_until = 0.0
            self._fail_all(GenerationError("the engine has stopped; see the server's log."))
            raise

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._served and self._drain_until is None:
                    self._changed.wait(timeout=0.2)
                if self._drain_until is not None and not self._queue and not self._served:
                    return
            if self._drain_until is not None and time.perf_counter() > self._drain_until:
                self._fail_all(DrainingError("the server is shutting down; this completion was not finished."))
                continue
            self._sweep_queue()
            self._free_cancelled()
            self._admit()
            if self._batch is not None:
                self._read(self._batch)
            if self._batch is not None and self._batch.running:
                self._step(self._batch)

    def _open(self) -> OpenBatch:
        """Open an empty batch. The last one's memory is freed first: there may not be room for both."""
        self._batch = None
        config = self._config
        self._tally = [Generation() for _ in range(config.batch_size)]
        self._exits = RowExits(self._engine.info, str(self._engine.backbone.device), self._tally)
        self._batch = self._engine.open(
            config.batch_size, self._positions, config.kv, self._exits, self._tally, config.kept_prompts
        )
        self._batch.with_log_probabilities = True
        return self._batch

    def _sweep_queue(self) -> None:
        """Remove cancelled and expired requests from the queue."""
        now = time.perf_counter()
        with self._changed:
            out = [ticket for ticket in self._queue if ticket.cancelled or now > ticket.deadline]
            for ticket in out:
                self._queue.remove(ticket)
        for ticket in out:
            self._drop_waiting(ticket)

    def _drop_waiting(self, ticket: EngineTicket) -> None:
        """Count a cancelled request; fail an expired one."""
        if ticket.cancelled:
            self._metrics.failed("cancelled")
        else:
            waited_s = time.perf_counter() - ticket.submitted
            self._fail(ticket, OverloadedError(f"waited {waited_s:.0f} s in the queue without being started."))

    def _admit(self) -> None:
        """Let requests join until one has a prompt to be read: the others wait, so that they can reuse it."""
        while self._batch is None or not self._batch.reading:
            with self._changed:
                if not self._queue or len(self._served) == self._config.batch_size:
                    return
                ticket = self._queue.popleft()
            if ticket.cancelled or time.perf_counter() > ticket.deadline:
                self._drop_waiting(ticket)
            else:
                self._begin(ticket, set(range(self._config.batch_size)) - set(self._served))

    def _begin(self, ticket: EngineTicket, free: set[int]) -> None:
        job, prompt = ticket.job, ticket.job.prompt.token_ids
        row = min(free) if self._batch is None else self._batch.row_for(prompt, job.owner, free)
        served = self._served[row] = Served(ticket, self._tokenizer, self._special)
        with self._failing([row]):
            batch = self._batch or self._open()
            self._energy.begin(row)
            strategy, lossless = job.setting.strategy, job.setting.lossless
            rows, rule = self._exits.join(row, strategy, job.seed, self._engine.facts(strategy, lossless))
            drafts = self._engine.drafts(lossless, rows, self._config.kv, strategy, rule)
            before = job.prompt.before
            code = None if before is None else self._tokenizer.decode(before)
            cursor = Cursor(prompt, self._tokenizer, "", self._engine.info, rows.device, code)
            stop = job.setting.stop
            served.prompt_reused = batch.join(
                row, prompt, job.max_new_tokens, served.stop, job.end_token_ids, ticket.submitted, job.owner,
                None if drafts is None else replace(drafts, rules=self._exits.guarded(drafts.rules)),
                None if stop is None else stop.start(cursor),
            )  # fmt: skip

    def _read(self, batch: OpenBatch) -> None:
        """Read the next piece of a prompt, if there is one."""
        for row in list(batch.reading):
            with self._failing([row]):
                batch.prefill([row], self._config.prefill_tokens)
                self._publish([row])

    def _step(self, batch: OpenBatch) -> None:
        rows = list(self._served)
        with self._failing(rows):
            batch.step()
            self._publish(rows)

    def _publish(self, rows: list[int]) -> None:
        """Deliver each row's new tokens, and endings; a row whose prompt is being read, or which drafts, has none."""
        for row in rows:
            served, made = self._served[row], self._tally[row]
            failure = self._exits.failures.pop(row, None) or made.failure
            if failure is not None:
                logger.error("a request failed", exc_info=failure)
                self._fail(self._free(row).ticket, GenerationError(f"generation failed: {reason(failure)}."))
                continue
            tokens, ending = served.tokens(made)
            for token in tokens:
                served.ticket.put(token)
            if ending is not None:
                energy_j, source = self._energy.end(row), self._energy.source
                layers = self._engine.info.num_layers
                done = served.finished(made, ending, self._config.kv, layers, energy_j, source)
                self._free(row)
                served.ticket.put(done)
                self._tell(done)

    def _tell(self, done: Finished) -> None:
        """Count and log a delivered completion."""
        try:
            self._metrics.finished(done)
            if self._config.log_prompts:  # in ASCII: no terminal control characters
                texts = self._tokenizer.decode(done.prompt.token_ids), done.text
                PROMPTS.info("%s -> %s", *(json.dumps(text) for text in texts))
        except Exception:
            logger.exception("a completion could not be counted")

    def _free_cancelled(self) -> None:
        """Free the rows of cancelled requests."""
        for row, served in list(self._served.items()):
            if served.ticket.cancelled:
                self._free(row)
                self._metrics.failed("cancelled")

    def _free(self, row: int) -> Served:
        if self._batch is not None:
            self._batch.drop(row)
        self._energy.end(row)
        return self._served.pop(row)

    def _fail(self, ticket: EngineTicket, error: ServingError) -> None:
        ticket.put(error)
        self._metrics.failed(error.kind)

    def _fail_all(self, error: ServingError) -> None:
        with self._changed:
            waiting = list(self._queue)
            self._queue.clear()
        for ticket in waiting:
            self._fail(ticket, error)
        for row in list(self._served):
            self._fail(self._free(row).ticket, error)

    @contextmanager
    def _failing(self, rows: list[int]) -> Iterator[None]:
        """Any exception fails the requests in these rows only."""
        try:
            yield
        except (Exception, SystemExit) as error:  # the engine's, a plug-in's, a tokenizer's: the thread must survive it
            logger.exception("decoding failed")
            if is_out_of_memory(error):
                said = "out of memory. Send a shorter prompt, or serve with a smaller --batch-size"
            else:
                said = reason(error)
            for row in rows:
                if self._batch is not None:
                    self._batch.forget(row)
                if row in self._served:
                    self._fail(self._free(row).ticket, GenerationError(f"generation failed: {said}."))
            if not self._served:
                self._batch = None  # its state is unknown; the next request opens a new one
