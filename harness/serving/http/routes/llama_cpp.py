"""llama.cpp's dialect: ``POST /infill`` for llama.vim and llama.vscode, and ``POST /completion``.

Answers are compact JSON with ``content`` first, since llama.vim looks for ``"content":"`` in the text.
``response_fields`` are answered as llama.cpp does: one flat entry for each path that exists.

A prompt that begins as an earlier one of the same API key is read from where it differs, unless ``cache_prompt`` is
false. ``n_predict = 0``, which llama.vim sends to have its ``input_extra`` read in advance, is answered at once and
evaluates nothing; −1 (no end, the default) and −2 (to the end of the context) stand for the server's cap; what
is no integer from there on is refused. ``input_extra``, samplers and ``t_max_prompt_ms`` are accepted and ignored.
``t_max_predict_ms`` ends a completion that has a line break, as llama.cpp does: half a line is useless.

Bodies of llama.cpp's ``/infill`` and ``/completion``.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from harness.decoding.generation import Token
from harness.serving.failures import InvalidRequestError, ServingError
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
    LlamaCppError,
    Object,
    Text,
    Texts,
    Whole,
    documented_events,
    flag,
    limit_of,
    object_of,
    prompts_of,
    refused,
    seed_of,
    text_of,
    texts,
    whole_number,
)
from harness.serving.jobs import Ending, Finished
from harness.serving.service import Service

StopType = Literal["eos", "word", "limit"]

Fields = Annotated[Any, WithJsonSchema({"type": ["array", "null"], "items": {"type": "string"}})]
Milliseconds = Annotated[Any, WithJsonSchema({"type": ["number", "null"]})]

OnePrompt = Annotated[
    Any,
    WithJsonSchema(
        {
            "description": "Text before the cursor, or its tokens.",
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            ],
        }
    ),
]
"""Read by :func:`harness.serving.http.schemas.prompts_of`."""


class Asked(BaseModel):
    """Fields that both routes read. Unknown fields are accepted and ignored."""

    model_config = ConfigDict(extra="allow")

    n_predict: Annotated[
        Any,
        WithJsonSchema({"type": ["integer", "null"], "minimum": -2}),
        Field(description="Limit of new tokens; −1, −2: the server's cap; 0: nothing is made, nothing evaluated."),
    ] = None
    stop: Annotated[Texts, Field(description="Texts that end the completion.")] = None
    t_max_predict_ms: Annotated[
        Milliseconds, Field(description="Milliseconds after the first token when it ends, once there is a line break.")
    ] = None
    stream: Annotated[Flag, Field(description="true: server-sent events, one per token.")] = None
    response_fields: Annotated[Fields, Field(description="Fields to be answered, as timings/prompt_n.")] = None
    seed: Annotated[Whole, Field(description="For random strategies.")] = None
    cache_prompt: Annotated[Flag, Field(description="false: read the whole prompt, and keep nothing of it.")] = None
    early_exit: Controls = None
    parameters: Annotated[Object, Field(description="Used: early_exit.")] = None
    options: Annotated[Object, Field(description="Used: early_exit.")] = None

    def fields(self) -> list[str] | None:
        """Return the paths of the fields to be answered; ``None`` for all."""
        fields = self.response_fields
        if fields is not None and not (isinstance(fields, list) and all(isinstance(each, str) for each in fields)):
            raise refused("response_fields", fields, "a list of texts")
        return fields or None

    def generate_s(self) -> float | None:
        """Return the seconds of generating it allows."""
        limit_ms = self.t_max_predict_ms
        if limit_ms is None:
            return None
        if isinstance(limit_ms, bool) or not isinstance(limit_ms, int | float):
            raise refused("t_max_predict_ms", limit_ms, "a number of milliseconds")
        return limit_ms / 1000 if 0 < limit_ms < 1e9 else None


class Infill(Asked):
    """A request to ``/infill``."""

    input_prefix: Annotated[Text, Field(description="Text before the cursor's line.")] = None
    prompt: Annotated[Text, Field(description="Text of that line before the cursor.")] = None
    input_suffix: Annotated[Text, Field(description="Text after the cursor.")] = None


class Completion(Asked):
    """A request to ``/completion``."""

    prompt: OnePrompt


class Timings(Answer):
    """llama.cpp's timings. The first token comes out of reading the prompt, so that ``predicted_ms`` and the rates are
    those of the others; what was not measured is omitted.
    """

    model_config = ConfigDict(extra="forbid", frozen=False)

    cache_n: Annotated[int, Field(description="Prompt tokens not read again, since an earlier prompt began so.")]
    prompt_n: Annotated[int, Field(description="Prompt tokens that were read.")]
    prompt_ms: float
    prompt_per_token_ms: float | None = None
    prompt_per_second: float | None = None
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float | None = None
    predicted_per_second: float | None = None


class Completed(BaseModel):
    """The whole answer, one token of it, or its ending; with ``response_fields`` those alone, under their paths."""

    content: Annotated[str, Field(description="The completion, or what this event adds to it.")] = ""
    stop: Annotated[bool, Field(description="Whether this is the last.")] = False
    tokens: Annotated[list[int], Field(description="Of an event: its token.")] = Field(default_factory=list)
    exit_layer: Annotated[int | None, Field(description="Of an event: decoder layers executed for its token.")] = None
    drafted_at: DraftedAt = None
    accepted: Accepted = None
    model: str | None = None
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    generation_settings: dict[str, Any] = Field(default_factory=dict)
    truncated: Annotated[bool, Field(description="Whether the prompt's beginning was cut off.")] = False
    stop_type: Annotated[StopType | None, Field(description="A deadline is a limit too.")] = None
    tokens_cached: Annotated[int | None, Field(description="As timings.cache_n.")] = None
    timings: Timings | None = None
    x_early_exit: EarlyExitReport | None = None


router = APIRouter(tags=["llama.cpp"])

STOP_TYPES: dict[Ending, StopType] = {
    "eos": "eos",
    "stop": "word",
    "length": "limit",
    "strategy": "word",
    "deadline": "limit",
}


EVENTS = documented_events(Completed, LlamaCppError, "one for each token; the last one has stop = true.")


@router.post("/infill", response_model=Completed, responses=EVENTS)
async def infill(request: Request, body: Infill) -> Response:
    """Complete a text at the cursor, as llama.cpp does; a prompt that is too long is cut at its beginning."""
    service: Service = request.app.state.service
    prefix = (text_of("input_prefix", body.input_prefix) or "") + (text_of("prompt", body.prompt) or "")
    suffix = text_of("input_suffix", body.input_suffix)
    if suffix is not None and not suffix.strip() and not service.fim:
        suffix = None  # llama.vim always sends a line break; a model without these tokens loses nothing
    if not prefix and not (suffix and service.fim) and not _only_warms(body):
        raise InvalidRequestError("input_prefix and prompt are empty: there is nothing to complete. Send one of them.")
    return await _complete(request, body, prefix, suffix)


@router.post("/completion", response_model=Completed, responses=EVENTS)
async def completion(request: Request, body: Completion) -> Response:
    """Complete a text, as llama.cpp does; a prompt that is too long is cut at its beginning."""
    prompt, *more = prompts_of(body.prompt)
    if more:
        raise InvalidRequestError(f"prompt has {len(more) + 1} prompts; send one, as a text or a list of token ids.")
    return await _complete(request, body, prompt, None)


def _only_warms(body: Asked) -> bool:
    """Whether nothing is to be made: the client warms a cache with ``input_extra``, which this server does not read."""
    return not isinstance(body.n_predict, float) and whole_number(body.n_predict) == 0


def _wanted(body: Asked, prompt: str | list[int], suffix: str | None) -> Wanted:
    return Wanted(
        prompt=prompt,
        suffix=suffix,
        max_new_tokens=limit_of("n_predict", body.n_predict, endless=(-1, -2)),
        stop=texts("stop", body.stop),
        early_exit=early_exit_of(
            {"early_exit": body.early_exit},
            object_of("parameters", body.parameters),
            object_of("options", body.options),
        ),
        truncate=True,
        generate_s=body.generate_s(),
        seed=seed_of(body.seed),
        reuse=flag("cache_prompt", body.cache_prompt, True),
    )


async def _complete(request: Request, body: Asked, prompt: str | list[int], suffix: str | None) -> Response:
    service: Service = request.app.state.service
    fields = body.fields()
    if _only_warms(body):
        nothing = Completed(
            content="",
            stop=True,
            model=service.model_name,
            tokens_predicted=0,
            tokens_evaluated=0,
            truncated=False,
            stop_type="limit",
            tokens_cached=0,
        )
        return JSONResponse(_chosen(nothing, fields))
    streamed = flag("stream", body.stream)
    ticket = submit(request, _wanted(body, prompt, suffix))
    if not streamed:
        done = await whole(request, ticket)
        return JSONResponse(_chosen(_last(service.model_name, done.text, done), fields))

    def lines(piece: Token | Finished) -> list[bytes]:
        if isinstance(piece, Finished):
            return [_event(_chosen(_last(service.model_name, piece.rest, piece), fields))]
        made = piece.index + 1
        token = Completed(
            content=piece.text, stop=False, tokens=[piece.token_id], tokens_predicted=made, **token_report(piece)
        )
        return [_event(token.model_dump(exclude_unset=True))]

    def failed(error: ServingError) -> list[bytes]:
        return [_event(refusal(request.url.path, error))]

    return await stream(ticket, lines, failed, request=request)


def _last(model: str, text: str, done: Finished) -> Completed:
    return Completed(
        content=text,
        stop=True,
        model=model,
        tokens_predicted=len(done.tokens),
        tokens_evaluated=len(done.prompt.token_ids),
        generation_settings={},
        truncated=done.prompt.truncated > 0,
        stop_type=STOP_TYPES[done.ending],
        tokens_cached=done.prompt_reused,
        timings=_timings(done),
        x_early_exit=EarlyExitReport.model_validate(early_exit_report(done)),
    )


def _timings(done: Finished) -> Timings:
    read, later = len(done.prompt.token_ids) - done.prompt_reused, len(done.tokens) - 1
    prompt_ms = (done.ttft_s - done.queue_s) * 1000
    later_ms = (done.total_s - done.ttft_s) * 1000
    timings = Timings(
        cache_n=done.prompt_reused,
        prompt_n=read,
        prompt_ms=round(prompt_ms, 3),
        predicted_n=len(done.tokens),
        predicted_ms=round(later_ms, 3),
    )
    if prompt_ms > 0:
        timings.prompt_per_token_ms = prompt_ms / read
        timings.prompt_per_second = 1000 * read / prompt_ms
    if later > 0 and later_ms > 0:
        timings.predicted_per_token_ms = later_ms / later
        timings.predicted_per_second = 1000 * later / later_ms
    return timings


def _chosen(completed: Completed, fields: list[str] | None) -> dict[str, Any]:
    """Return the fields asked for, each under its path, and what early exit did."""
    answer = completed.model_dump(exclude_unset=True)
    if fields is None:
        return answer
    chosen: dict[str, Any] = {}
    for path in fields:
        found: Any = answer
        for key in path.split("/"):
            if not isinstance(found, dict) or key not in found:
                break
            found = found[key]
        else:
            chosen[path] = found
    return chosen | ({"x_early_exit": answer["x_early_exit"]} if "x_early_exit" in answer else {})


def _event(answer: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
