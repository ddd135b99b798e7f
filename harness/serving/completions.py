"""One completion: what a client wants in one vocabulary, what the engine gets, what comes back, and how it fails.

A dialect turns a body into :class:`Wanted` and says :class:`harness.decoding.generation.Token` and :class:`Finished` in
its own words. A :class:`Ticket` lies between: the engine's thread fills it and the event loop reads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, AliasPath, BaseModel, BeforeValidator, ConfigDict, Field

from harness.config.decode import LOSSY, DecodeSpec
from harness.config.stops import BuiltStop
from harness.contracts import Lossless, Strategy
from harness.decoding.generation import Token
from harness.errors import HarnessError
from harness.records import Work

Ending = Literal["eos", "stop", "length", "strategy", "deadline"]
"""Why a completion ended: the end token, a stop text or rule, the limit of new tokens, its strategy, or time is up."""


class ServingError(HarnessError):
    """Root of the failures of an answer.

    Attributes:
        status: HTTP status.
        kind: TGI's ``error_type``, also OpenAI's ``type``.
        retry_s: seconds after which a client should ask again; ``None`` does not say.
    """

    status = 500
    kind = "internal"
    retry_s: int | None = None


class InvalidRequestError(ServingError):
    """A request that cannot be served as it is written."""

    status = 422
    kind = "validation"


class GenerationError(ServingError):
    """The engine failed on this request; the next one works."""

    status = 424
    kind = "generation"


class OverloadedError(ServingError):
    """The queue is full, or the request waited in it until its deadline."""

    status = 429
    kind = "overloaded"
    retry_s = 1


class LoadingError(ServingError):
    """The model is still loading, or could not be loaded."""

    status = 503
    kind = "loading"
    retry_s = 5


class DrainingError(ServingError):
    """The server is shutting down and accepts no new requests."""

    status = 503
    kind = "draining"


class RefusedError(ServingError):
    """A refusal with a status of HTTP's own."""

    def __init__(self, message: str, status: int, kind: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass(frozen=True, slots=True)
class Wanted:
    """A client's request in one vocabulary. ``None`` means not given.

    Attributes:
        prompt: text before the cursor, or its tokens.
        suffix: text after the cursor.
        max_new_tokens: its limit, at least 1; the server's cap applies. ``None``: the cap alone.
        stop: texts that end the completion.
        keep_stop: whether the text that ended it belongs to the completion (TGI) or not (OpenAI, Ollama, llama.cpp).
        early_exit: early exit as given in its body: ``{strategy, threshold, decode, draft, draft_max, …}`` or
            ``"NAME:option=value"``.
        truncate: whether a prompt that is too long loses its beginning instead of being refused.
        generate_s: seconds after its first token when it ends, once there is a line break (llama.cpp's rule).
        seed: for random strategies.
        reuse: whether keys and values of an earlier prompt that begins alike may be reused, and this one's later.
    """

    prompt: str | Sequence[int]
    suffix: str | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    early_exit: Any = None
    truncate: bool = False
    generate_s: float | None = None
    seed: int = 0
    reuse: bool = True


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
    """One completion to be made, for the engine.

    Attributes:
        prompt: what the model reads.
        setting: how it exits.
        max_new_tokens: limit, at least 1, the server's cap already applied.
        stop, keep_stop, generate_s, seed: as in :class:`Wanted`.
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
    """The ending of a completion, after its last token: the one source of everything that is said of it.

    Attributes:
        text: all of it; the texts of the tokens and ``rest``, joined, are this.
        rest: text held back until now, since it might have become a stop text.
        ending: why it ended.
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
        stopped_by: name of the stop rule that ended it; empty for anything else.
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

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt.token_ids)

    @property
    def prompt_computed(self) -> int:
        """Of these, those that were read."""
        return self.prompt_tokens - self.prompt_reused

    @property
    def new_tokens(self) -> int:
        """Tokens of the completion."""
        return len(self.tokens)

    @property
    def prefill_s(self) -> float:
        """Seconds of reading the prompt, out of which the first token comes."""
        return self.ttft_s - self.queue_s

    @property
    def decode_s(self) -> float:
        """Seconds of the other tokens."""
        return self.total_s - self.ttft_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first; ``None`` of one token."""
        return self.decode_s / (self.new_tokens - 1) if self.new_tokens > 1 else None

    @property
    def layers_executed(self) -> int:
        """Decoder layers executed for its tokens, those of prefill's included."""
        return sum(self.work.exit_layers)

    @property
    def layers_skipped(self) -> int:
        """Decoder layers that full depth would have executed on top."""
        return len(self.work.exit_layers) * self.num_layers - self.layers_executed

    @property
    def drafts(self) -> Work | None:
        """The work, where it is that of lossless decoding."""
        return self.work if self.work.lossless else None


def _said(meaning: str, of: str | None = None, default: Any = ...) -> Any:
    """A field of a report, read from an attribute of :class:`Finished`, or from one of that, where it is named so."""
    return Field(default, validation_alias=None if of is None else AliasPath(*of.split(".")), description=meaning)


def _option(value: object) -> object:
    """Return an option's value as JSON has it: a path or an infinite number as its text."""
    infinite = isinstance(value, float) and not math.isfinite(value)
    return value if not infinite and isinstance(value, str | int | float | None) else str(value)


Option = Annotated[str | int | float | bool | None, BeforeValidator(_option)]
Seconds = Annotated[float, AfterValidator(lambda value: round(value, 6))]
Written = Annotated[str | None, BeforeValidator(lambda value: str(value) if value else None)]


class Report(BaseModel):
    """Base of what answers say: read from attributes, every key documented."""

    model_config = ConfigDict(from_attributes=True, populate_by_name=True, extra="forbid", frozen=True)


class DraftReport(Report):
    """Drafts of lossless decoding and how many were accepted."""

    drafted_at: list[int | None] = _said(
        "For each token the decoder layers that ran before a draft of its place was made, 0 where a draft source "
        "proposed it; null without a draft."
    )
    accepted: list[bool] = _said("For each token whether it is the draft's; else full depth said it.")
    drafted_tokens: int = _said("Discarded ones included.")
    accepted_tokens: int = _said("Those that full depth agreed with.")
    verifications: int = _said("Passes through all layers after prefill.")
    layers_discarded: int = _said("Decoder layers run for drafted tokens that were discarded.")
    acceptance: float | None = _said("Accepted of drafted tokens; null without any.")
    tokens_per_verification: float | None = _said("Tokens after prefill's per verification; null without any.")


class EarlyExitReport(Report):
    """``x_early_exit`` of every answer: the effective setting and what it did."""

    strategy: str = _said("Its name.", "setting.name")
    options: dict[str, Option] = _said("Every option with its value.", "setting.options")
    kv: str = _said("What became of K,V of skipped layers.")
    decode: Written = _said("lossy, or lossless with its draft source: full depth's tokens.", "setting.decode")
    draft_max: int | None = _said("Longest draft; null of lossy decoding.", "setting.lossless.draft_max", None)
    draft_head: Written = _said("What reads the tokens that exits draft; null if lossy.", "setting.lossless.head", None)
    stop_rule: str | None = _said(
        "Rule that might end it beside its stop texts, or null.", "setting.stop.written", None
    )
    stopped_by: Written = _said("Name of that rule if it ended it; null for anything else.")
    drafts: DraftReport | None = _said("null of lossy decoding.")
    num_layers: int = _said("Decoder layers of the model.")
    exit_layers: list[int] = _said("Decoder layers executed for each token.", "work.exit_layers")
    layers_executed: int = _said("Their sum.")
    layers_skipped: int = _said("What full depth would have executed on top.")
    decode_layers: int = _said("Run after prefill, catch-up work of kv = recompute included.", "work.layers_executed")
    exit_checks: int = _said("Times the strategy was asked.", "work.exit_checks")
    lm_head_evaluations: int = _said("After prefill, the outputs' own included.", "work.lm_head_evaluations")
    counts: dict[str, int] = _said("Every counter by the name it has in samples.jsonl.", "work.counts")
    ending: Ending
    prompt_tokens: int
    prompt_tokens_reused: int = _said(
        "Of these, not read again: an earlier prompt of the same API key began with them.", "prompt_reused"
    )
    prompt_tokens_truncated: int = _said("Cut off the prompt's beginning.", "prompt.truncated")
    suffix: Literal["none", "used", "ignored"] = _said("What became of the text after the cursor.", "prompt.suffix")
    queue_s: Seconds = _said("Seconds in the queue.")
    ttft_s: Seconds = _said("Seconds from arrival to the first token.")
    total_s: Seconds = _said("Seconds from arrival to the last token.")
    energy_j: Seconds | None = _said("This request's share, measured or estimated; null without a number.")
    energy_source: str = _said("A sensor, or an estimate, or none.")


def early_exit_report(done: Finished) -> dict[str, Any]:
    """Return ``x_early_exit`` of an answer."""
    return EarlyExitReport.model_validate(done).model_dump()


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
    """The engine's :class:`Ticket`. Made in the event loop that reads it.

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
        """See :meth:`Ticket.cancel`."""
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
