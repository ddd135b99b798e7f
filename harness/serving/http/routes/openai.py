"""OpenAI's dialect: completions, the ones before chat, which editors use.

Texts that end a completion are omitted from it. Decoding is greedy: parameters of sampling change nothing, and ``n``
choices are copies of one. Each choice has ``exit_layers``; ``x_early_exit`` stands at the top of an answer to one
prompt, in every choice, and in a stream with the ending of each choice.

Bodies of OpenAI's completions, the ones before chat.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from harness.decoding.generation import Token
from harness.serving.failures import InvalidRequestError, ServingError
from harness.serving.http.answers import early_exit_report, stream_all, token_report, whole_all
from harness.serving.http.refusals import refusal
from harness.serving.http.requests import Wanted, early_exit_of, submit_all
from harness.serving.http.schemas import (
    MAX_PROMPTS,
    WHOLE,
    Accepted,
    Answer,
    Anything,
    Controls,
    DraftedAt,
    EarlyExitReport,
    Flag,
    Limit,
    Object,
    OpenAIError,
    Text,
    Texts,
    Whole,
    documented_events,
    finite,
    flag,
    limit_of,
    object_of,
    prompts_of,
    refused,
    seed_of,
    text_of,
    texts,
    whole_of,
)
from harness.serving.jobs import Ending, Finished, Ticket

MAX_COPIES = 16

Logged = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "boolean"}, *WHOLE["anyOf"]]})]
Copies = Annotated[Any, WithJsonSchema({"type": ["integer", "null"], "minimum": 1})]

FinishReason = Literal["stop", "length"]

_TOKEN_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_PROMPT: dict[str, Any] = {
    "description": "Text before the cursor, or its token ids, or a list of either.",
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_PROMPTS},
        _TOKEN_IDS,
        {"type": "array", "items": _TOKEN_IDS, "minItems": 1, "maxItems": MAX_PROMPTS},
    ],
}


class CompletionRequest(BaseModel):
    """A request. Unknown fields are accepted and ignored.

    Without ``max_tokens`` the server's cap applies, not OpenAI's 16: editors expect whole lines, and a trial with
    ``curl`` should not show a truncated completion.
    """

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"prompt": "def add(a, b):\n", "max_tokens": 20, "early_exit": {"threshold": 0.9}}]
        },
    )

    prompt: Annotated[Any, WithJsonSchema(_PROMPT)]
    model: Annotated[Anything, Field(description="Any; the server has one model.")] = None
    suffix: Annotated[Text, Field(description="Text after the cursor.")] = None
    max_tokens: Annotated[Limit, Field(description="Limit of new tokens, from 1; default: the server's cap.")] = None
    stop: Annotated[Texts, Field(description="A text or a list; omitted from the completion.")] = None
    stream: Annotated[Flag, Field(description="true: server-sent events.")] = None
    stream_options: Annotated[Object, Field(description="{include_usage: true}: a last event with usage.")] = None
    echo: Annotated[Flag, Field(description="true: begin the text with the prompt, which must be text.")] = None
    logprobs: Annotated[
        Logged, Field(description="A number: log probabilities of the chosen tokens; from 1 on as top_logprobs too.")
    ] = None
    seed: Annotated[Whole, Field(description="For random strategies.")] = None
    n: Annotated[
        Copies,
        Field(description=f"Choices for each prompt. Decoding is greedy: identical copies, {MAX_COPIES} at most."),
    ] = None
    early_exit: Controls = None


class Logprobs(Answer):
    """Log probabilities of the tokens of a choice, those of the prompt never included."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: Annotated[
        list[dict[str, float | None]] | None, Field(description="Only the chosen token is known; null if 0 were asked.")
    ]
    text_offset: list[int]


class PromptTokensDetails(Answer):
    """How many of the prompt's tokens were cached."""

    cached_tokens: Annotated[int, Field(description="Not read again: an earlier prompt of the same key began so.")]


class Usage(Answer):
    """Tokens of prompts and completions; copies count as choices do."""

    prompt_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens: int
    total_tokens: int


class Choice(Answer):
    """A whole completion."""

    text: str
    index: int
    finish_reason: FinishReason
    logprobs: Logprobs | None
    exit_layers: Annotated[list[int], Field(description="Decoder layers executed for each token.")]
    x_early_exit: EarlyExitReport


class Completion(Answer):
    """A whole answer."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    x_early_exit: Annotated[
        EarlyExitReport | None, Field(description="That of the only prompt; null for several: each choice has its own.")
    ]


class ChunkChoice(Answer):
    """One token, or the ending, of one completion."""

    text: str
    index: int
    finish_reason: FinishReason | None
    logprobs: Logprobs | None
    exit_layer: Annotated[int | None, Field(description="Decoder layers executed for the token; null at the ending.")]
    drafted_at: DraftedAt
    accepted: Accepted


class Chunk(Answer):
    """One event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: Annotated[list[ChunkChoice], Field(max_length=1)]
    usage: Annotated[Usage | None, Field(description="Where asked for: null until the last event.")] = None
    x_early_exit: Annotated[EarlyExitReport | None, Field(description="With the ending of a choice.")] = None


router = APIRouter(tags=["OpenAI"])

FINISH_REASONS: dict[Ending, FinishReason] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "strategy": "stop",
    "deadline": "length",
}

EVENTS = documented_events(Chunk, OpenAIError, "one for each token and each ending, then [DONE].", last="[DONE]")


@router.post("/v1/completions", response_model=Completion, responses=EVENTS)
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Complete one text or several; events where ``stream`` is true."""
    prompts = prompts_of(body.prompt)
    asked = _Asked.by(body, prompts, request.app.state.service.model_name)
    streamed = flag("stream", body.stream)
    tickets = submit_all(request, [_wanted(body, prompt) for prompt in prompts])
    if streamed:
        return await _streamed(request, asked, tickets)
    answer = _completion(asked, await whole_all(request, tickets))
    return Response(answer.model_dump_json(), media_type="application/json")


@router.post("/completions", response_model=Completion, responses=EVENTS)
async def completions_at_root(request: Request, body: CompletionRequest) -> Response:
    """Complete as ``/v1/completions`` does, for clients whose base address lacks ``/v1``."""
    return await completions(request, body)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The form of the answer.

    Attributes:
        model: its name here.
        begins: what each prompt's completion begins with: the prompt where it is to be echoed.
        copies: choices for each prompt.
        logprobs: whether they are given, and whether as ``top_logprobs`` too.
        usage: whether a stream ends with it.
        id, created: of the answer.
    """

    model: str
    begins: tuple[str, ...]
    copies: int
    logprobs: bool
    top_logprobs: bool
    usage: bool
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def by(cls, body: CompletionRequest, prompts: Sequence[str | list[int]], model: str) -> _Asked:
        logprobs = (1 if body.logprobs else None) if isinstance(body.logprobs, bool) else body.logprobs
        logprobs = whole_of("logprobs", logprobs)
        copies = whole_of("n", body.n)
        if copies is not None and copies < 1:
            raise refused("n", body.n, "a whole number from 1")
        return cls(
            model=model,
            begins=tuple(_begin(prompt) for prompt in prompts) if flag("echo", body.echo) else ("",) * len(prompts),
            copies=min(copies or 1, MAX_COPIES),
            logprobs=logprobs is not None and logprobs >= 0,
            top_logprobs=logprobs is not None and logprobs >= 1,
            usage=flag("include_usage", object_of("stream_options", body.stream_options).get("include_usage")),
        )


def _begin(prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    raise InvalidRequestError("echo = true needs a prompt that is text, not token ids.")


def _wanted(body: CompletionRequest, prompt: str | list[int]) -> Wanted:
    extra = body.model_extra or {}
    return Wanted(
        prompt=prompt,
        suffix=text_of("suffix", body.suffix),
        max_new_tokens=limit_of("max_tokens", body.max_tokens),
        stop=texts("stop", body.stop),
        early_exit=early_exit_of({"early_exit": body.early_exit}, extra.get("parameters"), extra.get("options")),
        seed=seed_of(body.seed),
    )


def _completion(asked: _Asked, endings: Sequence[Finished]) -> Completion:
    reports = [EarlyExitReport.model_validate(early_exit_report(done)) for done in endings]
    choices = [
        Choice(
            text=asked.begins[place] + done.text,
            index=place * asked.copies + copy,
            finish_reason=FINISH_REASONS[done.ending],
            logprobs=_logprobs(asked, done.tokens, done.rest, len(asked.begins[place])),
            exit_layers=reports[place].exit_layers,
            x_early_exit=reports[place],
        )
        for place, done in enumerate(endings)
        for copy in range(asked.copies)
    ]
    return Completion(
        id=asked.id,
        created=asked.created,
        model=asked.model,
        choices=choices,
        usage=_usage(asked, endings),
        x_early_exit=reports[0] if len(reports) == 1 else None,
    )


def _usage(asked: _Asked, endings: Sequence[Finished]) -> Usage:
    read = sum(len(done.prompt.token_ids) for done in endings)
    made = sum(len(done.tokens) for done in endings) * asked.copies
    details = PromptTokensDetails(cached_tokens=sum(done.prompt_reused for done in endings))
    return Usage(prompt_tokens=read, prompt_tokens_details=details, completion_tokens=made, total_tokens=read + made)


def _logprobs(asked: _Asked, tokens: Sequence[Token], rest: str, offset: int) -> Logprobs | None:
    """Return those of the tokens; what was held back until the ending is the last one's."""
    if not asked.logprobs or not tokens:
        return None
    pieces = [token.text for token in tokens]
    pieces[-1] += rest
    values = [finite(token.logprob) for token in tokens]
    offsets = [offset]
    for piece in pieces[:-1]:
        offsets.append(offsets[-1] + len(piece))
    tops = [{piece: value} for piece, value in zip(pieces, values, strict=True)] if asked.top_logprobs else None
    return Logprobs(tokens=pieces, token_logprobs=values, top_logprobs=tops, text_offset=offsets)


async def _streamed(request: Request, asked: _Asked, tickets: Sequence[Ticket]) -> Response:
    def failed(error: ServingError) -> list[bytes]:
        return [_event(json.dumps(refusal(request.url.path, error), ensure_ascii=False))]

    return await stream_all(tickets, _Chunks(asked).lines, failed, request=request)


class _Chunks:
    """Writes the events of one stream."""

    def __init__(self, asked: _Asked) -> None:
        self.asked = asked
        self.sent = [0] * len(asked.begins)  # characters of each prompt's text
        self.endings: list[Finished] = []

    def lines(self, place: int, piece: Token | Finished) -> list[bytes]:
        begin = self.asked.begins[place] if self.sent[place] == 0 else ""
        offset = self.sent[place] + len(begin)
        text = begin + (piece.text if isinstance(piece, Token) else piece.rest)
        self.sent[place] += len(text)
        if isinstance(piece, Token):
            return self._chunks(place, text, _logprobs(self.asked, [piece], "", offset), piece)
        self.endings.append(piece)
        return self._chunks(place, text, None, piece) + self._end()

    def _chunks(self, place: int, text: str, logprobs: Logprobs | None, piece: Token | Finished) -> list[bytes]:
        done = piece if isinstance(piece, Finished) else None
        nothing = {"exit_layer": None, "drafted_at": None, "accepted": None}
        facts: Mapping[str, Any] = token_report(piece) if isinstance(piece, Token) else nothing
        return [
            self._event(
                [
                    ChunkChoice(
                        text=text,
                        index=place * self.asked.copies + copy,
                        finish_reason=None if done is None else FINISH_REASONS[done.ending],
                        logprobs=logprobs,
                        **facts,
                    )
                ],
                None if done is None else EarlyExitReport.model_validate(early_exit_report(done)),
            )
            for copy in range(self.asked.copies)
        ]

    def _end(self) -> list[bytes]:
        if len(self.endings) < len(self.asked.begins):
            return []
        usage = [self._event([], None, _usage(self.asked, self.endings))] if self.asked.usage else []
        return [*usage, _event("[DONE]")]

    def _event(self, choices: list[ChunkChoice], report: EarlyExitReport | None, usage: Usage | None = None) -> bytes:
        chunk = Chunk(
            id=self.asked.id,
            created=self.asked.created,
            model=self.asked.model,
            choices=choices,
            usage=usage,
            x_early_exit=report,
        )
        silent: set[str] = set() if self.asked.usage else {"usage"}
        return _event(chunk.model_dump_json(exclude=silent | ({"x_early_exit"} if report is None else set())))


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
