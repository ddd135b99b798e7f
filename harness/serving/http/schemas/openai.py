"""Bodies of OpenAI's completions, the ones before chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from harness.serving.http.schemas.early_exit import Accepted, Answer, DraftedAt, EarlyExitReport
from harness.serving.http.schemas.prompts import MAX_PROMPTS
from harness.serving.http.schemas.values import WHOLE, Anything, Controls, Flag, Limit, Object, Text, Texts, Whole

__all__ = [
    "Choice",
    "Chunk",
    "ChunkChoice",
    "Completion",
    "CompletionRequest",
    "Logprobs",
    "PromptTokensDetails",
    "Usage",
]

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
