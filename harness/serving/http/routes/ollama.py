"""Ollama's dialect: ``POST /api/generate``, streamed unless the client sets ``stream`` to false.

Not promised: templates, ``system``, ``context``, images and chat. The prompt is always read as it stands, as with
``raw``, and decoding is greedy whatever the options say. ``num_predict`` is a limit, or −1 (no end, Ollama's default)
or −2 (to the end of the context), which both stand for the server's cap; anything else is refused.

Bodies of Ollama's ``/api/generate``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
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
    Text,
    flag,
    limit_of,
    object_of,
    seed_of,
    text_of,
    texts,
    whole_schema,
)
from harness.serving.jobs import Ending, Finished
from harness.serving.service import Service

DoneReason = Literal["stop", "length"]


class Generate(BaseModel):
    """A request. Unknown fields are accepted and ignored, also inside ``options``."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"prompt": "def add(a, b):\n", "options": {"num_predict": 20}}]},
    )

    prompt: Annotated[str, Field(min_length=1, description="Text before the cursor.")]
    suffix: Annotated[Text, Field(description="Text after the cursor.")] = None
    stream: Annotated[Flag, Field(description="false: one object. Else one line of JSON per token, and the last.")] = (
        None
    )
    truncate: Annotated[
        Flag, Field(description="false: refuse a prompt that is too long. Else it loses its beginning.")
    ] = None
    options: Annotated[
        Object,
        Field(
            description="An object. Used: num_predict (from 1; -1, -2: the server's cap), stop (a text or a list), "
            "seed, early_exit. Decoding is greedy: temperature, top_p … change nothing."
        ),
    ] = None
    early_exit: Controls = None

    def asked(self) -> Mapping[str, Any]:
        """Return the options."""
        return object_of("options", self.options)


class Generated(Answer):
    """The whole answer, one token of it, or its ending."""

    model: str
    created_at: str
    response: Annotated[str, Field(description="The completion, or what this line adds to it.")]
    done: bool
    exit_layer: Annotated[int | None, Field(description="Of a token: decoder layers executed for it.")] = None
    drafted_at: DraftedAt = None
    accepted: Accepted = None
    done_reason: Annotated[DoneReason | None, Field(description="A deadline is a length too.")] = None
    total_duration: Annotated[int | None, Field(description="Nanoseconds from arrival to the last token.")] = None
    load_duration: Annotated[int | None, Field(description="Always 0: the model is there.")] = None
    prompt_eval_count: Annotated[int | None, Field(description="Tokens read.")] = None
    prompt_eval_duration: Annotated[
        int | None, Field(description="Nanoseconds until the first token, without the queue.")
    ] = None
    eval_count: Annotated[int | None, Field(description="Tokens made.")] = None
    eval_duration: Annotated[int | None, Field(description="Nanoseconds from the first token to the last.")] = None
    x_early_exit: EarlyExitReport | None = None


router = APIRouter(tags=["Ollama"])

DONE_REASONS: dict[Ending, DoneReason] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "strategy": "stop",
    "deadline": "length",
}


LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The completion. As lines of JSON: one for each token; the last one has done = true.",
        "content": {"application/x-ndjson": {"itemSchema": whole_schema(Generated)}},
    }
}


@router.post("/api/generate", response_model=Generated, responses=LINES)
async def generate(request: Request, body: Generate) -> Response:
    """Complete a text, as Ollama does."""
    service: Service = request.app.state.service
    asked = body.asked()
    parameters = (body.model_extra or {}).get("parameters")
    wanted = Wanted(
        prompt=body.prompt,
        suffix=text_of("suffix", body.suffix),
        max_new_tokens=limit_of("num_predict", asked.get("num_predict"), endless=(-1, -2)),
        stop=texts("stop", asked.get("stop")),
        early_exit=early_exit_of({"early_exit": body.early_exit}, parameters, asked),
        truncate=flag("truncate", body.truncate, True),
        seed=seed_of(asked.get("seed")),
    )
    streamed = flag("stream", body.stream, True)
    ticket = submit(request, wanted)
    if not streamed:
        done = await whole(request, ticket)
        return Response(_last(service.model_name, done.text, done), media_type="application/json")

    def lines(piece: Token | Finished) -> list[bytes]:
        if isinstance(piece, Finished):
            return [_last(service.model_name, piece.rest, piece) + b"\n"]
        token = Generated(
            model=service.model_name, created_at=_now(), response=piece.text, done=False, **token_report(piece)
        )
        return [_json(token) + b"\n"]

    def failed(error: ServingError) -> list[bytes]:
        return [json.dumps(refusal(request.url.path, error)).encode() + b"\n"]

    return await stream(ticket, lines, failed, media_type="application/x-ndjson", request=request)


def _last(model: str, text: str, done: Finished) -> bytes:
    """Return the closing object. The first token comes out of reading the prompt, so its time is part of that."""
    answer = Generated(
        model=model,
        created_at=_now(),
        response=text,
        done=True,
        done_reason=DONE_REASONS[done.ending],
        total_duration=_nanoseconds(done.total_s),
        load_duration=0,
        prompt_eval_count=len(done.prompt.token_ids),
        prompt_eval_duration=_nanoseconds(done.ttft_s - done.queue_s),
        eval_count=len(done.tokens),
        eval_duration=_nanoseconds(done.total_s - done.ttft_s),
        x_early_exit=EarlyExitReport.model_validate(early_exit_report(done)),
    )
    return _json(answer)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return max(round(seconds * 1e9), 0)


def _json(answer: Generated) -> bytes:
    return answer.model_dump_json(exclude_unset=True).encode()
