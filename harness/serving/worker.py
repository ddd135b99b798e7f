"""The one thread that decodes for all requests: they wait in a bounded queue, and join and leave between tokens.

Prompts are read in the order in which they came, one at a time, and in pieces: between two of these every running
request makes or drafts a token. A request that is cancelled, late or fails leaves without affecting the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from functools import partial

from harness.config.rules import start_stop
from harness.contracts import Cursor, Meter, NamedStop, PromptRule, StopRule, Tokenizer
from harness.decoding.engine import Engine
from harness.decoding.exits import RowExits
from harness.decoding.generation import Generation, Token, Transcript
from harness.decoding.idle import IdleWork
from harness.decoding.loop import OpenBatch
from harness.errors import reason
from harness.records import Work
from harness.registry import ran_out_of_memory
from harness.serving.completions import (
    DrainingError,
    Echoed,
    Ending,
    Finished,
    GenerationError,
    Job,
    OverloadedError,
    Prompt,
    ServingError,
)
from harness.serving.config import ServeConfig
from harness.serving.metrics import Metrics

logger = logging.getLogger(__name__)

PROMPTS = logging.getLogger("harness.serving.prompts")
"""Logs prompts and completions, one JSON text each, with ``--log-prompts``."""


class Answer:
    """What becomes of the jobs of one request. Made, and iterated over once, in the event loop of its reader.

    Yields the place of a job with each :class:`Token` when it is made, or verified, and with its :class:`Finished`
    last; raises the failure of a job, or what else :meth:`put` was given. A slow reader delays no other request.
    """

    def __init__(self, jobs: Sequence[Job], deadline_s: float) -> None:
        self.submitted = time.perf_counter()
        self.deadline = self.submitted + deadline_s
        self.cancelled = False
        self.tickets = [Ticket(self, place, job) for place, job in enumerate(jobs)]
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Token | Finished] | Exception] = asyncio.Queue()

    def put(self, piece: tuple[int, Token | Finished] | Exception) -> None:
        """Hand over a piece, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is no reader
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def cancel(self) -> None:
        """Cancel the jobs: their rows are free within one token."""
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[tuple[int, Token | Finished]]:
        """Yield what comes, until the last ending."""
        left = len(self.tickets)
        while left:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                raise piece
            left -= isinstance(piece[1], Finished)
            yield piece


class Ticket:
    """One job from the queue to its ending; in a row since :meth:`begin`."""

    def __init__(self, answer: Answer, place: int, job: Job) -> None:
        self.answer, self.job = answer, job
        self.row: int | None = None
        self.began = 0.0
        self.prompt_reused = 0
        self.ended = False
        self.transcript: Transcript
        self._place = place

    def begin(self, row: int, tokenizer: Tokenizer, special: frozenset[int]) -> None:
        """Take a row."""
        job, self.row, self.began = self.job, row, time.perf_counter()
        self.transcript = Transcript(
            tokenizer, job.stop, keep_stop=job.keep_stop, silent=special, after=job.prompt.token_ids
        )

    def put(self, piece: Token | Finished | ServingError) -> None:
        """Hand over a piece; what is no token is the last."""
        self.ended = not isinstance(piece, Token)
        self.answer.put(piece if isinstance(piece, ServingError) else (self._place, piece))

    def tokens(self, made: Generation) -> tuple[list[Token], Ending | None]:
        """Return the tokens that were made since the last call, and why the last of them ends it."""
        new = len(made.token_ids) - len(self.transcript.tokens)
        if not new:
            return [], made.finish_reason
        ending: Ending | None = made.finish_reason or ("deadline" if self._is_late(made) else None)
        last = ending is not None
        return [self.transcript.read(made, last=last and left == 0) for left in reversed(range(new))], ending

    def _is_late(self, made: Generation) -> bool:
        """Whether the deadline is over, or its own time is and it has a whole line: half a line is useless."""
        now, limit_s = time.perf_counter(), self.job.generate_s
        over = limit_s is not None and now > self.answer.submitted + made.token_times_s[0] + limit_s
        return now > self.answer.deadline or (over and "\n" in self.transcript.text)


class EnergyShares:
    """Cuts time where a request begins or ends, and splits each cut's energy among those that ran in it.

    Shares add up to what was measured while any request ran. A cut shorter than the sensor's tick is imprecise;
    over several requests the errors cancel. The meter is closed by its owner.
    """

    def __init__(self, meter: Meter) -> None:
        self.source = meter.source
        self._meter: Meter | None = meter
        self._energy_j: dict[int, float | None] = {}  # of each row that runs

    def begin(self, row: int) -> None:
        """A request begins in a row."""
        self._close()
        self._energy_j[row] = None if self._meter is None else 0.0
        self._open()

    def end(self, row: int) -> float | None:
        """A row's request ended, if one ran there: returns its joules, ``None`` when there is no number."""
        if row not in self._energy_j:
            return None
        self._close()
        energy_j = self._energy_j.pop(row)
        self._open()
        return energy_j

    def _open(self) -> None:
        with self._giving_up():
            if self._meter is not None and self._energy_j:
                self._meter.begin()

    def _close(self) -> None:
        with self._giving_up():
            if self._meter is not None and self._energy_j:
                used_j, running = self._meter.end().energy_j, len(self._energy_j)
                for row, before in self._energy_j.items():
                    self._energy_j[row] = None if before is None or used_j is None else before + used_j / running

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """A meter, which may be a plug-in, ends the numbers and no completion."""
        try:
            yield
        except Exception as error:
            logger.warning("energy is not measured from now on: %s", error)
            self._meter, self.source = None, "none"
            self._energy_j = dict.fromkeys(self._energy_j)


class Worker:
    """Decodes what is submitted. :meth:`run` is the thread; everything else may be called from any other."""

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
        self.queue: deque[Ticket] = deque()
        self.served: dict[int, Ticket] = {}
        self._changed = threading.Condition()
        self._drain_until: float | None = None
        self._idle: IdleWork | None = None  # and the open batch
        self._open()

    def submit(self, answer: Answer) -> None:
        """Queue all jobs of an answer, or refuse all."""
        with self._changed:
            if self._drain_until is not None:
                raise DrainingError("the server is shutting down. Use another one.")
            waiting = sum(not ticket.answer.cancelled for ticket in list(self.queue))
            running = sum(not ticket.answer.cancelled for ticket in list(self.served.values()))
            if waiting + running + len(answer.tickets) > self._config.max_queue + self._config.batch_size:
                raise OverloadedError(
                    f"{running} requests run and {waiting} wait, which is the limit. Try again later."
                )
            self.queue.extend(answer.tickets)
            self._changed.notify()

    def drain(self, seconds: float) -> None:
        """Accept no new requests; accepted ones get so many seconds. :meth:`run` then returns."""
        # No lock: a signal handler may interrupt the thread that holds it.
        self._drain_until = time.perf_counter() + seconds

    def run(self) -> None:
        """Decode until drained; after a defect, which is raised, every request has failed and no more are accepted."""
        try:
            self._run()
        except BaseException:
            self._drain_until = 0.0
            self._fail_all(GenerationError("the engine has stopped; see the server's log."))
            raise

    def _run(self) -> None:
        while True:
            while not self._awaited() and self._prefetch():
                pass
            with self._changed:
                while not self._awaited():
                    self._changed.wait(timeout=0.2)
            if self._idle is not None:
                self._idle.begin()
            if self._drain_until is not None:
                if not self.queue and not self.served:
                    return
                if time.perf_counter() > self._drain_until:
                    self._fail_all(DrainingError("the server is shutting down; this completion was not finished."))
                    continue
            self._sweep()
            self._admit()
            if self._batch is not None:
                self._read(self._batch)
            if self._batch is not None and self._batch.running:
                tickets = list(self.served.values())
                with self._failing(tickets):
                    self._batch.step()
                    self._publish(tickets)

    def _awaited(self) -> bool:
        """Whether somebody waits for something, be it the end."""
        return bool(self.queue or self.served) or self._drain_until is not None

    def _prefetch(self) -> bool:
        """Do a piece of work for later requests, no longer than a token or so; return whether there was any."""
        idle, started, worked = self._idle, time.perf_counter(), False
        if idle is None:
            return False
        before = idle.deepened, idle.drafted
        with self._failing([]):
            worked = idle.piece()
            for row in list(self._exits.failures):
                logger.error("a draft in idle time failed", exc_info=self._exits.failures.pop(row))
                idle.batch.forget(row)
                idle.begin(row)
        if worked:
            spent_s = time.perf_counter() - started
            self._metrics.prefetched(idle.deepened - before[0], idle.drafted - before[1], spent_s)
        return worked

    @property
    def _batch(self) -> OpenBatch | None:
        """The open batch; ``None`` until one is opened, and after a failure that leaves its state unknown."""
        return None if self._idle is None else self._idle.batch

    def _open(self) -> IdleWork:
        """Open an empty batch. The last one's memory is freed first: there may not be room for both."""
        self._idle = None
        config = self._config
        self._tally = [Generation() for _ in range(config.batch_size)]
        self._exits = RowExits(self._engine.info, str(self._engine.backbone.device), self._tally)
        batch = self._engine.open(
            config.batch_size, self._positions, config.kv, self._exits, self._tally, config.kept_prompts, "exact"
        )
        batch.with_log_probabilities = True
        self._idle = IdleWork(batch, self._tally, self._positions, config.prefetch)
        return self._idle

    def _sweep(self) -> None:
        """Let cancelled requests go, and refuse those that waited until their deadline."""
        now = time.perf_counter()
        with self._changed:
            out = [one for one in self.queue if one.answer.cancelled or now > one.answer.deadline]
            for ticket in out:
                self.queue.remove(ticket)
        for ticket in [*out, *(one for one in self.served.values() if one.answer.cancelled)]:
            if ticket.answer.cancelled:
                self._free(ticket, known=True)
                self._metrics.failed("cancelled")
            else:
                waited_s = now - ticket.answer.submitted
                self._fail(ticket, OverloadedError(f"waited {waited_s:.0f} s in the queue without being started."))

    def _admit(self) -> None:
        """Let requests join until one has a prompt to be read: the others wait, so that they can reuse it."""
        while self._batch is None or not self._batch.reading:
            with self._changed:
                if not self.queue or len(self.served) == self._config.batch_size:
                    return
                ticket = self.queue.popleft()
            with self._failing([ticket]):
                self._begin(ticket)

    def _begin(self, ticket: Ticket) -> None:
        job, prompt = ticket.job, ticket.job.prompt
        idle = self._idle or self._open()
        row = idle.batch.row_for(prompt.token_ids, job.owner, set(range(self._config.batch_size)) - set(self.served))
        idle.begin(row)
        ticket.begin(row, self._tokenizer, self._special)
        self.served[row] = ticket
        self._energy.begin(row)
        code = None if prompt.before is None else self._tokenizer.decode(prompt.before)
        device = str(self._engine.backbone.device)
        cursor = Cursor(prompt.token_ids, self._tokenizer, "", self._engine.info, device, code)
        exits = None if job.scored else job.setting.prompt
        ticket.prompt_reused = self._join(
            idle, job, row, prompt.token_ids, job.max_new_tokens, ticket.transcript.follow, ticket.answer.submitted,
            start_stop(job.setting.stop, cursor), None if exits is None else exits.rule,
        )  # fmt: skip

    def _join(
        self,
        idle: IdleWork,
        job: Job,
        row: int,
        tokens: Sequence[int],
        max_new_tokens: int,
        stop: StopRule | None = None,
        started: float | None = None,
        rule: NamedStop | None = None,
        prompt_rule: PromptRule | None = None,
    ) -> int:
        """Let tokens join the batch, decoded as a job is; return how many of them are not read again."""
        strategy, lossless = job.setting.strategy, job.setting.lossless
        rows, asked = self._exits.join(row, strategy, job.seed, self._engine.facts(strategy, lossless))
        drafts = self._engine.drafts(
            lossless, replace(rows, known=idle.known(job.owner)), self._config.kv, strategy, asked
        )
        if drafts is not None:
            drafts = replace(drafts, rules=self._exits.guarded(drafts.rules))
        return idle.batch.join(
            row, tokens, max_new_tokens, stop, job.prompt.end_token_ids, started, job.owner, drafts, rule, prompt_rule,
            job.scored,
        )  # fmt: skip

    def _read(self, batch: OpenBatch) -> None:
        """Read the next piece of a prompt, if there is one."""
        for row in list(batch.reading):
            ticket = self.served[row]
            with self._failing([ticket]):
                batch.prefill([row], self._config.prefill_tokens)
                self._publish([ticket])

    def _publish(self, tickets: list[Ticket]) -> None:
        """Deliver new tokens, and endings; a row whose prompt is being read, or which drafts, has none."""
        for ticket in tickets:
            assert ticket.row is not None
            made = self._tally[ticket.row]
            failure = self._exits.failures.pop(ticket.row, None) or made.failure
            if failure is not None:
                logger.error("a request failed", exc_info=failure)
                self._fail(ticket, GenerationError(f"generation failed: {reason(failure)}."))
                continue
            tokens, ending = ticket.tokens(made)
            for token in tokens:
                ticket.put(token)
            if ending is not None:
                done = self._finished(ticket, ticket.row, made, ending)
                if self._idle is not None:
                    self._metrics.prefetch_used(self._idle.used(ticket.job.owner, ticket.job.prompt.token_ids, made))
                self._free(ticket, known=True)
                ticket.put(done)
                self._tell(done)

    def _finished(self, ticket: Ticket, row: int, made: Generation, ending: Ending) -> Finished:
        transcript, submitted = ticket.transcript, ticket.answer.submitted
        return Finished(
            text=transcript.finish(),
            rest=transcript.rest(),
            ending="stop" if transcript.stopped else ending,
            tokens=tuple(transcript.tokens),
            prompt=ticket.job.prompt,
            prompt_reused=ticket.prompt_reused,
            setting=ticket.job.setting,
            kv=self._config.kv,
            num_layers=self._engine.info.num_layers,
            work=Work.of(made),
            queue_s=ticket.began - submitted,
            ttft_s=transcript.tokens[0].time_s,
            total_s=transcript.tokens[-1].time_s,
            energy_j=self._energy.end(row),
            energy_source=self._energy.source,
            stopped_by=made.stopped_by,
            echoed=self._echoed(ticket.job.prompt, made) if ticket.job.scored else (),
            prompt_shallow=0 if self._batch is None else self._batch.shallow(row),
        )

    def _echoed(self, prompt: Prompt, made: Generation) -> tuple[Echoed, ...]:
        """Return the tokens of a prompt as they were sent, each with its text."""
        ids, scores, spell = prompt.token_ids[prompt.begun :], [None, *made.prompt_scores], self._tokenizer.decode
        text = Transcript(self._tokenizer, ())
        pieces, before = [], 0
        for end in range(1, len(ids) + 1):
            text.follow(ids[:end])
            whole = text.text if end < len(ids) else text.finish()
            pieces.append(whole[before:])
            before = len(whole)
        return tuple(
            Echoed(piece, None) if score is None else Echoed(piece, score[0], spell([score[1]]), score[2])
            for piece, score in zip(pieces, scores[prompt.begun :], strict=True)
        )

    def _tell(self, done: Finished) -> None:
        """Count and log a delivered completion."""
        try:
            self._metrics.finished(done)
            if self._config.log_prompts:  # in ASCII: no terminal control characters
                texts = self._tokenizer.decode(done.prompt.token_ids), done.text
                PROMPTS.info("%s -> %s", *(json.dumps(text) for text in texts))
        except Exception:
            logger.exception("a completion could not be counted")

    def _free(self, ticket: Ticket, *, known: bool = False) -> None:
        """Empty its row, if it has one; what it made may be known to later requests, and drafted on behind."""
        row, ticket.row = ticket.row, None
        if row is not None:
            if self._idle is not None:
                self._idle.batch.drop(row)
                if known:
                    job = ticket.job
                    drafts = job.setting.decode.recalls and not ticket.answer.cancelled
                    go_on = partial(self._join, self._idle, job, row) if drafts else None
                    self._idle.answered(row, job.owner, job.prompt.token_ids, go_on)
            self._energy.end(row)
            del self.served[row]

    def _fail(self, ticket: Ticket, error: ServingError) -> None:
        self._free(ticket)
        ticket.put(error)
        self._metrics.failed(error.kind)

    def _fail_all(self, error: ServingError) -> None:
        with self._changed:
            waiting = list(self.queue)
            self.queue.clear()
        for ticket in (*waiting, *list(self.served.values())):
            self._fail(ticket, error)

    @contextlib.contextmanager
    def _failing(self, tickets: list[Ticket]) -> Iterator[None]:
        """Any exception fails those of these requests that have not ended."""
        try:
            yield
        except BaseException as error:  # the engine's, a plug-in's, a tokenizer's: the thread must survive it
            logger.exception("decoding failed")
            said = reason(error)
            if ran_out_of_memory(error):
                said = "out of memory. Send a shorter prompt, or serve with a smaller --batch-size"
            for ticket in tickets:
                if ticket.row is not None and self._batch is not None:
                    self._batch.forget(ticket.row)
                if not ticket.ended:
                    self._fail(ticket, GenerationError(f"generation failed: {said}."))
            if not self.served:
                self._idle = None  # its state is unknown; the next request opens a new one
