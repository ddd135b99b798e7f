"""The one thread that decodes: takes requests from a bounded queue, lets them join and leave between tokens.

Prompts are read in the order in which they came, one at a time, and in pieces: between two of these every running
request makes or drafts a token. So a long prompt delays a token by no more than a piece; the first tokens of requests
that came later it does delay. A request that is cancelled, late or fails leaves without affecting the others.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from harness.contracts import Cursor, Tokenizer
from harness.decoding.engine import Engine
from harness.decoding.exits import RowExits
from harness.decoding.generation import Generation
from harness.decoding.loop import OpenBatch
from harness.errors import is_out_of_memory, reason
from harness.serving.engine.energy_shares import EnergyShares
from harness.serving.engine.served import Served
from harness.serving.engine.tickets import EngineTicket
from harness.serving.failures import DrainingError, GenerationError, OverloadedError, ServingError
from harness.serving.jobs import Finished, Prompt
from harness.serving.metrics import Metrics

__all__ = ["PROMPTS", "Worker"]

logger = logging.getLogger(__name__)

PROMPTS = logging.getLogger("harness.serving.prompts")
"""Logs prompts and completions, one JSON text each, with ``--log-prompts``."""


class Worker:
    """Decodes what is submitted. :meth:`run` is the thread; everything else may be called from any other.

    Args:
        engine: decodes.
        tokenizer: the model's. special: ids that add no text.
        kv: what happens to K,V of skipped layers.
        rows: requests decoded together.
        positions: longest prompt and completion together.
        max_queue: requests that may wait.
        energy: attributes energy to requests.
        metrics: count completions.
        prefill_tokens: of a prompt that are read between two tokens of running requests.
        kept_prompts: free rows that keep their last prompt, to be reused by the same owner.
        log_prompts: whether prompts and completions are logged, by :data:`PROMPTS`.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        special: frozenset[int],
        kv: str,
        rows: int,
        positions: int,
        max_queue: int,
        energy: EnergyShares,
        metrics: Metrics,
        *,
        prefill_tokens: int,
        kept_prompts: int,
        log_prompts: bool = False,
    ) -> None:
        self._engine, self._tokenizer, self._special, self._kv = engine, tokenizer, special, kv
        self._size, self._positions, self._max_queue = rows, positions, max_queue
        self._energy, self._metrics, self._log_prompts = energy, metrics, log_prompts
        self._prefill_tokens, self._kept_prompts = prefill_tokens, kept_prompts
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
            if waiting >= self._max_queue + self._size - running:
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
                self._refuse_all()
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
        self._tally = [Generation() for _ in range(self._size)]
        self._exits = RowExits(self._engine.info, str(self._engine.backbone.device), self._tally)
        self._batch = self._engine.open(
            self._size, self._positions, self._kv, self._exits, self._tally, self._kept_prompts
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
            self._count("cancelled")
        else:
            waited_s = time.perf_counter() - ticket.submitted
            self._fail(ticket, OverloadedError(f"waited {waited_s:.0f} s in the queue without being started."))

    def _admit(self) -> None:
        """Let requests join until one has a prompt to be read: the others wait, so that they can reuse it."""
        while self._batch is None or not self._batch.reading:
            with self._changed:
                if not self._queue or len(self._served) == self._size:
                    return
                ticket = self._queue.popleft()
            if ticket.cancelled or time.perf_counter() > ticket.deadline:
                self._drop_waiting(ticket)
            else:
                self._begin(ticket, set(range(self._size)) - set(self._served))

    def _begin(self, ticket: EngineTicket, free: set[int]) -> None:
        job, prompt = ticket.job, ticket.job.prompt.token_ids
        row = min(free) if self._batch is None else self._batch.row_for(prompt, job.owner, free)
        served = self._served[row] = Served(ticket, self._tokenizer, self._special)
        with self._failing([row]):
            batch = self._batch or self._open()
            self._energy.begin(row)
            strategy, lossless = job.setting.strategy, job.setting.lossless
            rows, rule = self._exits.join(row, strategy, job.seed, self._engine.facts(strategy, lossless))
            drafts = self._engine.drafts(lossless, rows, self._kv, strategy, rule)
            stop = job.setting.stop
            served.prompt_reused = batch.join(
                row, prompt, job.max_new_tokens, served.stop, job.end_token_ids, ticket.submitted, job.owner,
                None if drafts is None else replace(drafts, rules=self._exits.guarded(drafts.rules)),
                None if stop is None else stop.start(self._cursor(job.prompt, rows.device)),
            )  # fmt: skip

    def _cursor(self, prompt: Prompt, device: str) -> Cursor:
        code = None if prompt.before is None else self._tokenizer.decode(prompt.before)
        return Cursor(prompt.token_ids, self._tokenizer, "", self._engine.info, device, code)

    def _read(self, batch: OpenBatch) -> None:
        """Read the next piece of a prompt, if there is one."""
        for row in list(batch.reading):
            with self._failing([row]):
                batch.prefill([row], self._prefill_tokens)
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
                self._fail_row(row, GenerationError(f"generation failed: {reason(failure)}."))
                continue
            tokens, ending = served.tokens(made)
            for token in tokens:
                served.ticket.put(token)
            if ending is not None:
                energy_j, source = self._energy.end(row), self._energy.source
                layers = self._engine.info.num_layers
                done = served.finished(made, ending, self._kv, layers, energy_j, source)
                self._free(row)
                served.ticket.put(done)
                self._tell(done)

    def _tell(self, done: Finished) -> None:
        """Count and log a delivered completion."""
        try:
            self._metrics.finished(done)
            if self._log_prompts:  # in ASCII: no terminal control characters
                texts = self._tokenizer.decode(done.prompt.token_ids), done.text
                PROMPTS.info("%s -> %s", *(json.dumps(text) for text in texts))
        except Exception:
            logger.exception("a completion could not be counted")

    def _count(self, kind: str) -> None:
        try:
            self._metrics.failed(kind)
        except Exception:
            logger.exception("a failure could not be counted")

    def _free_cancelled(self) -> None:
        """Free the rows of cancelled requests."""
        for row, served in list(self._served.items()):
            if served.ticket.cancelled:
                self._free(row)
                self._count("cancelled")

    def _free(self, row: int) -> Served:
        if self._batch is not None:
            self._batch.drop(row)
        self._energy.forget([row])
        return self._served.pop(row)

    def _fail_row(self, row: int, error: ServingError) -> None:
        self._fail(self._free(row).ticket, error)

    def _fail(self, ticket: EngineTicket, error: ServingError) -> None:
        ticket.put(error)
        self._count(error.kind)

    def _refuse_all(self) -> None:
        """Fail everything that is left at the end of draining."""
        self._fail_all(DrainingError("the server is shutting down; this completion was not finished."))

    def _fail_all(self, error: ServingError) -> None:
        with self._changed:
            waiting = list(self._queue)
            self._queue.clear()
        for ticket in waiting:
            self._fail(ticket, error)
        for row in list(self._served):
            self._fail_row(row, error)

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
                    self._fail_row(row, GenerationError(f"generation failed: {said}."))
            if not self._served:
                self._batch = None  # its state is unknown; the next request opens a new one
