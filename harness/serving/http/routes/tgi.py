"""Hugging Face's dialect: ``/generate`` and ``/generate_stream`` of TGI, and the addresses its clients use.

The text that ended a completion belongs to it here. Decoding is greedy: parameters of sampling change nothing.

Bodies of Hugging Face's text-generation-inference (TGI).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from harness.decoding.generation import Token
from harness.serving.failures import ServingError
from harness.serving.http.answers import early_exit_report, stream, token_report, whole
from harness.serving.http.refusals import refusal
from harness.serving.http.requests import Wanted, early_exit_of, submit
from harness.serving.http.schemas import (
    Accepted,
    Answer,
    Controls,
    DraftedAt,
    EarlyExitReport,
    Flag,
    Object,
    TgiError,
    documented_events,
    finite,
    flag,
    limit_of,
    object_of,
    seed_of,
    texts,
    whole_of,
)
from harness.serving.jobs import Ending, Finished, Ticket

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class Generate(BaseModel):
    """A request. Unknown fields are accepted and ignored, also inside ``parameters``."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "inputs": "def add(a, b):\n",
                    "parameters": {"max_new_tokens": 20, "early_exit": {"threshold": 0.9}},
                }
            ]
        },
    )

    inputs: Annotated[str, Field(min_length=1, description="Text before the cursor.")]
    parameters: Annotated[
        Object,
        Field(
            description="An object. Used: max_new_tokens (from 1; default: the server's cap), stop (a text or a list; "
            "kept in the completion), details, return_full_text (default false), truncate (any number: a prompt that "
            "is too long loses its beginning), seed, early_exit. Decoding is greedy: temperature, top_p … change "
            "nothing.",
        ),
    ] = None
    stream: Annotated[Flag, Field(description="true: server-sent events, at / and /models/… only.")] = None
    early_exit: Controls = None

    def asked(self) -> dict[str, Any]:
        """Return the parameters that are set, both switches, also where a client nests ``parameters.parameters``."""
        outer = object_of("parameters", self.parameters)
        inner = object_of("parameters.parameters", outer.get("parameters"))
        said = {name: value for name, value in inner.items() if value is not None}
        said |= {name: value for name, value in outer.items() if value is not None and name != "parameters"}
        return said | {name: flag(name, said.get(name)) for name in ("details", "return_full_text")}


class TgiToken(Answer):
    """One token."""

    id: int
    text: Annotated[str, Field(description="What it adds to the text; nothing while a character is incomplete.")]
    logprob: Annotated[float | None, Field(description="Under the exit head that chose it.")]
    special: bool
    exit_layer: Annotated[int, Field(description="Decoder layers executed for it.")]
    drafted_at: DraftedAt
    accepted: Accepted


class Details(Answer):
    """``details`` of a whole answer."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: Annotated[list[TgiToken], Field(max_length=0, description="Always empty.")]
    tokens: list[TgiToken]


class Generation(Answer):
    """A whole answer; ``details`` only where asked for."""

    generated_text: str
    details: Details | None = None
    x_early_exit: EarlyExitReport


class StreamDetails(Answer):
    """``details`` of a stream's last event."""

    finish_reason: FinishReason
    generated_tokens: int
    input_length: int
    seed: int | None


class StreamEvent(Answer):
    """One token of a stream; the last one has the whole text, ``details`` and ``x_early_exit``."""

    index: Annotated[int, Field(description="Counted from 1, as TGI does.")]
    token: TgiToken
    generated_text: str | None = None
    details: StreamDetails | None = None
    x_early_exit: EarlyExitReport | None = None


router = APIRouter(tags=["TGI"])

FINISH_REASONS: dict[Ending, FinishReason] = {
    "eos": "eos_token",
    "stop": "stop_sequence",
    "length": "length",
    "strategy": "stop_sequence",
    "deadline": "length",
}

EVENTS = documented_events(StreamEvent, TgiError, "one for each token; the last one has generated_text and details.")


@router.post("/generate", response_model=Generation)
async def generate(request: Request, body: Generate) -> Response:
    """Complete a text."""
    generation = await _whole(request, body)
    return Response(generation.model_dump_json(exclude_unset=True), media_type="application/json")


@router.post("/generate_stream", response_class=StreamingResponse, responses=EVENTS)
async def generate_stream(request: Request, body: Generate) -> Response:
    """Complete a text, token by token."""
    return await _streamed(request, body)


@router.post("/", response_model=list[Generation], responses=EVENTS)
async def generate_at_root(request: Request, body: Generate) -> Response:
    """Complete a text: a list of one, or events where ``stream`` is true."""
    if flag("stream", body.stream):
        return await _streamed(request, body)
    generation = await _whole(request, body)
    return Response(f"[{generation.model_dump_json(exclude_unset=True)}]", media_type="application/json")


NO_NAME: dict[int | str, dict[str, Any]] = {404: {"model": TgiError, "description": "A name with a line break."}}


@router.post("/models/{model:path}", response_model=list[Generation], responses=EVENTS | NO_NAME)
async def generate_at_model(request: Request, model: str, body: Generate) -> Response:
    """Complete a text as ``/`` does, for clients of Hugging Face's hosted models; any model name is accepted."""
    return await generate_at_root(request, body)


def _submitted(request: Request, body: Generate) -> tuple[dict[str, Any], Ticket]:
    asked = body.asked()
    wanted = Wanted(
        prompt=body.inputs,
        max_new_tokens=limit_of("max_new_tokens", asked.get("max_new_tokens")),
        stop=texts("stop", asked.get("stop")),
        keep_stop=True,
        early_exit=early_exit_of({"early_exit": body.early_exit}, asked, (body.model_extra or {}).get("options")),
        truncate=whole_of("truncate", asked.get("truncate")) is not None,
        seed=seed_of(asked.get("seed")),
    )
    return asked, submit(request, wanted)


async def _whole(request: Request, body: Generate) -> Generation:
    asked, ticket = _submitted(request, body)
    done = await whole(request, ticket)
    text = _full_text(body, asked) + done.text
    report = EarlyExitReport.model_validate(early_exit_report(done))
    if not asked["details"]:
        return Generation(generated_text=text, x_early_exit=report)
    *others, last = done.tokens
    details = Details(
        finish_reason=FINISH_REASONS[done.ending],
        generated_tokens=len(done.tokens),
        seed=whole_of("seed", asked.get("seed")),
        prefill=[],
        tokens=[*map(_token, others), _token(last, done.rest)],
    )
    return Generation(generated_text=text, details=details, x_early_exit=report)


async def _streamed(request: Request, body: Generate) -> StreamingResponse:
    asked, ticket = _submitted(request, body)
    events = _events(_full_text(body, asked), whole_of("seed", asked.get("seed")))

    def failed(error: ServingError) -> list[bytes]:
        return [_event(json.dumps(refusal(request.url.path, error), ensure_ascii=False))]

    return await stream(ticket, events, failed, request=request)


def _events(begin: str, seed: int | None) -> Callable[[Token | Finished], list[bytes]]:
    """Return what to send for each piece: each token at once, the last one with the whole text and the details.

    Where a strategy ends a completion without a further token, the last one is sent already: its index comes again,
    without its text.
    """
    last: Token | None = None

    def event_of(token: Token, rest: str = "", done: Finished | None = None) -> bytes:
        event = StreamEvent(index=token.index + 1, token=_token(token, rest))
        if done is not None:
            details = StreamDetails(
                finish_reason=FINISH_REASONS[done.ending],
                generated_tokens=len(done.tokens),
                input_length=len(done.prompt.token_ids),
                seed=seed,
            )
            report = EarlyExitReport.model_validate(early_exit_report(done))
            ending = {"generated_text": begin + done.text, "details": details, "x_early_exit": report}
            event = event.model_copy(update=ending)
        # null is written for the text and the details, which clients expect
        return _event(event.model_dump_json(exclude={"x_early_exit"} if done is None else None))

    def lines(piece: Token | Finished) -> list[bytes]:
        nonlocal last
        if isinstance(piece, Finished):
            assert last is not None, "an ending comes after its last token"
            said = last if last.last else replace(last, text="", special=not piece.rest)
            return [event_of(said, piece.rest, piece)]
        last = piece
        return [] if piece.last else [event_of(piece)]

    return lines


def _full_text(body: Generate, asked: dict[str, Any]) -> str:
    return body.inputs if asked["return_full_text"] else ""


def _token(token: Token, rest: str = "") -> TgiToken:
    """Return a token; what was held back until the ending is the last one's."""
    return TgiToken(
        id=token.token_id,
        text=token.text + rest,
        logprob=finite(token.logprob),
        special=token.special,
        **token_report(token),
    )


def _event(data: str) -> bytes:
    return f"data:{data}\n\n".encode()
