"""Messages between the routes and the engine's thread: a job goes in, tokens and one ending come back.

A job on its way: what the engine's thread fills and the event loop reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from harness.config.decode import LOSSY, DecodeSpec
from harness.config.stops import BuiltStop
from harness.contracts import Lossless, Strategy
from harness.decoding.generation import Token
from harness.records import Work
from harness.serving.failures import ServingError

Ending = Literal["eos", "stop", "length", "strategy", "deadline"]
"""Why a completion ended: the end token, a stop text or rule, the limit of new tokens, its strategy, or time is up."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt as the model reads it.

    Attributes:
        token_ids: at least one.
        truncated: tokens cut off its beginning because they did not fit.
        suffix: what became of the text after the cursor: ``none`` was given, ``used`` by fill-in-the-middle tokens, or
            ``ignored`` because the model has none and the server is configured to.
        before: tokens of the text before a gap; ``None`` where the prompt is all there is.
    """

    token_ids: tuple[int, ...]
    truncated: int = 0
    suffix: Literal["none", "used", "ignored"] = "none"
    before: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """The effective early-exit setting of a request.

    Attributes:
        name: strategy name.
        options: every option that a request may set, with the value in effect.
        strategy: as built.
        decode: whether full depth verifies what exits, and a draft source, draft.
        lossless: the same as built; ``None`` where it takes what exits say.
        stop: ends completions beside stop texts; ``None`` for nothing.
    """

    name: str
    options: dict[str, object]
    strategy: Strategy
    decode: DecodeSpec = LOSSY
    lossless: Lossless | None = None
    stop: BuiltStop | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One completion to be made.

    Attributes:
        prompt: what the model reads.
        setting: how it exits.
        max_new_tokens: limit, at least 1, the server's cap already applied.
        stop: texts that end it.
        keep_stop: whether the text that ended it belongs to the completion (TGI) or not (OpenAI, Ollama, llama.cpp).
        generate_s: seconds after its first token when it ends, once there is a line break (llama.cpp's rule);
            ``None`` for no limit of its own.
        seed: for random strategies.
        owner: whose it is: keys and values of a prompt that begins alike are reused where this is the same; ``None``
            reuses nothing and leaves nothing.
        end_token_ids: tokens that end it, those of the prompt's form included; filled in by the service.
    """

    prompt: Prompt
    setting: Setting
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    generate_s: float | None = None
    seed: int = 0
    owner: str | None = None
    end_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Finished:
    """The ending of a completion, after its last token.

    Attributes:
        text: all of it; the texts of the tokens and ``rest``, joined, are this.
        rest: text held back until now, since it might have become a stop text.
        ending: why it ended.
        stopped_by: name of the stop rule that ended it; empty for anything else.
        tokens: all of them.
        prompt: what was read. prompt_reused: its first tokens that were not, since their keys and values were there.
        setting: how it exited. kv: what happened to K,V of skipped layers.
        num_layers: decoder layers of the model.
        work: what decoding did.
        queue_s: from submission to the start of prefill.
        ttft_s: from submission to the first token.
        total_s: from submission to the last token.
        energy_j: this request's share of what was used while it ran, joules; ``None`` without a number.
        energy_source: of the meter; ``none`` where it failed.
    """

    text: str
    rest: str
    ending: Ending
    tokens: tuple[Token, ...]
    prompt: Prompt
    prompt_reused: int
    setting: Setting
    kv: str
    num_layers: int
    work: Work
    queue_s: float
    ttft_s: float
    total_s: float
    energy_j: float | None
    energy_source: str
    stopped_by: str = ""


class Ticket(Protocol):
    """A submitted job: iterate over it once, in the event loop that submitted it.

    Yields every :class:`Token` when it is made, or verified, then several at once, and :class:`Finished` last.

    Raises:
        ServingError: while iterating, when it fails: :class:`GenerationError`, :class:`OverloadedError` (it waited too
            long), :class:`DrainingError`.
    """

    def __aiter__(self) -> AsyncIterator[Token | Finished]:
        """Wait for what comes."""

    def cancel(self) -> None:
        """Cancel the job: its row is free within one token. Does nothing once it has ended."""


class EngineTicket:
    """A :class:`harness.serving.jobs.Ticket`. Made in the event loop that reads it.

    Unread tokens wait in memory, at most one completion, so that a slow reader delays no other request.

    Args:
        job: what is wanted.
        deadline_s: seconds from now that it has.

    Attributes:
        submitted: when, by ``time.perf_counter``. deadline: until when.
        cancelled: whether the client has cancelled it.
    """

    def __init__(self, job: Job, deadline_s: float) -> None:
        self.job = job
        self.submitted = time.perf_counter()
        self.deadline = self.submitted + deadline_s
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Token | Finished | ServingError] = asyncio.Queue()

    def put(self, piece: Token | Finished | ServingError) -> None:
        """Hand over a piece, from any thread; a :class:`Finished` or a failure is the last."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is no reader
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def cancel(self) -> None:
        """See :meth:`harness.serving.jobs.Ticket.cancel`."""
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Token | Finished]:
        """Yield what comes."""
        while True:
            piece = await self._pieces.get()
            if isinstance(piece, ServingError):
                raise piece
            yield piece
            if isinstance(piece, Finished):
                return
