"""Bodies of llama.cpp's ``/infill`` and ``/completion``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from harness.serving.http.schemas.early_exit import Accepted, Answer, DraftedAt, EarlyExitReport
from harness.serving.http.schemas.values import Controls, Flag, Object, Text, Texts, Whole, refused

__all__ = ["Asked", "Completed", "Completion", "Infill", "StopType", "Timings"]

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
"""Read by :func:`harness.serving.http.schemas.prompts.prompts_of`."""


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
