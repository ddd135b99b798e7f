"""A request while it occupies a row: its text, its tokens, its time, and its ending."""

from __future__ import annotations

import time
from collections.abc import Sequence

from harness.contracts import Tokenizer
from harness.decoding.generation import Generation
from harness.decoding.transcript import Token, Transcript
from harness.records import Work
from harness.serving.engine.tickets import EngineTicket
from harness.serving.jobs import Ending, Finished

__all__ = ["Served"]


class Served:
    """One request from its first prefill to its ending.

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
        self._began = time.perf_counter()
        self.prompt_reused = 0
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
