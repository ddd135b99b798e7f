"""The bodies of each dialect: parsed leniently, documented exactly.

Values as clients write them: what can be parsed is used, ``null`` counts as not given, anything else is refused.

Clients send ``null`` for what they do not set, and sometimes whole numbers as ``20.0`` or as text. A field that this
server does not use takes anything; one that it documents as used and that cannot be read is refused, and never
becomes its default without a word.

Server-sent events, and how the schema of the API describes them.

The four forms a prompt has with OpenAI's clients, of which llama.cpp's know two.

Read by hand: a validator would report an error for each of a million bad items.

The form of an error in each dialect, for the schema of the API.

Early-exit facts in every answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from harness.serving.failures import InvalidRequestError
from harness.serving.jobs import Ending

Anything = Annotated[Any, WithJsonSchema({})]
"""A field that is not used."""

WHOLE: dict[str, Any] = {
    "anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^-?[0-9]{1,19}$"}, {"type": "null"}]
}
TEXTS: dict[str, Any] = {
    "anyOf": [
        {"type": ["string", "null"]},
        {"type": "array", "items": {"type": ["string", "null"]}, "maxItems": 256},
    ]
}
Whole = Annotated[Any, WithJsonSchema(WHOLE)]
"""A whole number, read by :func:`whole_of`."""
Text = Annotated[Any, WithJsonSchema({"type": ["string", "null"]})]
"""A text, read by :func:`text_of`."""
Texts = Annotated[Any, WithJsonSchema(TEXTS)]
"""A text or a list of them, read by :func:`texts`."""
Flag = Annotated[Any, WithJsonSchema({"type": ["boolean", "null"]})]
"""A switch, read by :func:`flag`."""
Object = Annotated[Any, WithJsonSchema({"type": ["object", "null"]})]
"""An object, read by :func:`object_of`; its description says what of it is used."""

Limit = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": "^[1-9][0-9]{0,18}$"},
                {"type": "null"},
            ]
        }
    ),
]
"""A limit of new tokens, read by :func:`limit_of`."""

Controls = Annotated[
    Any,
    WithJsonSchema(
        {
            "description": "Early exit of this request: {strategy: NAME, option: value, …}, or 'NAME:option=value'. "
            "GET /info lists strategies, options and limits. Beside them: decode, lossless (exits draft, full depth "
            "verifies: its own tokens, in bursts) or lossy (what exits say); draft, a source that proposes tokens "
            "first, as lookup; draft_max, the longest draft; stop_rule, what ends it beside its stop texts, as "
            "statement:language=python, or none. Without it the header X-Early-Exit, then the query's "
            "early_exit, then the server's default counts.",
            "examples": [{"threshold": 0.9, "decode": "lossless", "draft": "lookup", "draft_max": 8}],
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "strategy": {"type": ["string", "null"]},
                        "decode": {"type": ["string", "null"]},
                        "draft": {"type": ["string", "null"]},
                        "draft_max": {"type": ["integer", "string", "null"]},
                        "stop_rule": {"type": ["string", "null"]},
                    },
                    "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
                },
                {"type": "string"},
                {"type": "null"},
            ],
        }
    ),
]
"""Our own key; invalid values are refused where it is used."""


def whole_number(value: object) -> int | None:
    """Return a whole number, written as one, as ``20.0`` or as ``"20"``; ``None`` for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    return None


def limit_of(name: str, value: object, *, endless: tuple[int, ...] = ()) -> int | None:
    """Return a limit of new tokens; ``None`` where there is none but the server's cap.

    Unlike what is ignored, a limit that cannot be meant must not become the cap without a word. A number written as
    text is one, as everywhere; a float is none, whatever stands behind its point.

    Args:
        name: of the field, for the refusal.
        value: as received; ``null`` is not given.
        endless: numbers with which the dialect says that there is no limit.

    Raises:
        InvalidRequestError: it is no positive integer and none of those.
    """
    number = None if isinstance(value, float) else whole_number(value)
    if value is None or number in endless:
        return None
    if number is None or number < 1:
        others = f", or {' or '.join(map(str, endless))} for the server's limit" if endless else ""
        said = f"{name} = {str(value)[:60]!r} is no limit of tokens."
        raise InvalidRequestError(f"{said} Send an integer from 1{others}.")
    return number


def refused(name: str, value: object, wanted: str) -> InvalidRequestError:
    """Return the refusal of a field that is used and cannot be read."""
    return InvalidRequestError(f"{name} = {str(value)[:60]!r} is not {wanted}. Send {wanted}, or leave it out.")


def whole_of(name: str, value: object) -> int | None:
    """Return a field's whole number, see :func:`whole_number`; ``None`` where it was not given.

    Raises:
        InvalidRequestError: it is none.
    """
    number = whole_number(value)
    if value is not None and number is None:
        raise refused(name, value, "a whole number")
    return number


def seed_of(value: object) -> int:
    """Return a seed that every generator of random numbers takes; 0 where none was given; raises as others."""
    return (whole_of("seed", value) or 0) % 2**63


def text_of(name: str, value: object) -> str | None:
    """Return a field's text; ``None`` where it was not given; raises as others."""
    if value is None or isinstance(value, str):
        return value
    raise refused(name, value, "a text")


def texts(name: str, value: object) -> tuple[str, ...]:
    """Return the texts of a field that is one or a list of them, empty ones left out; raises as others."""
    listed = value if isinstance(value, list) else [value]
    if not all(item is None or isinstance(item, str) for item in listed):
        raise refused(name, value, "a text or a list of texts")
    return tuple(str(item) for item in listed if item)


def flag(name: str, value: object, default: bool = False) -> bool:
    """Return whether a field's switch is on; the default where it was not given; raises as others."""
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    raise refused(name, value, "true or false")


def object_of(name: str, value: object) -> Mapping[str, Any]:
    """Return a field's object; an empty one where it was not given; raises as others."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    raise refused(name, value, "an object")


def finite(number: float) -> float | None:
    """Return a number as JSON can represent it; ``None`` for infinity and NaN, which half precision can produce."""
    return number if math.isfinite(number) else None


def documented_events(
    event: type[BaseModel], failure: type[BaseModel], ending: str, *, last: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """Return a stream as FastAPI's ``responses``.

    Args:
        event: JSON of an event.
        failure: JSON of the event that ends a stream which failed half-way.
        ending: how to tell that the stream is complete.
        last: what is sent last where that is not JSON.
    """
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [whole_schema(event), whole_schema(failure)]},
    }
    if last is not None:
        data = {"anyOf": [data, {"const": last}]}
    return {
        200: {
            "description": f"The completion. As server-sent events: {ending}",
            "content": {
                "text/event-stream": {
                    "itemSchema": {"type": "object", "properties": {"data": data}, "required": ["data"]},
                }
            },
        }
    }


def whole_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a schema that refers to nothing outside; the models do not contain themselves."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def put_in(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return put_in(definitions[node["$ref"].rpartition("/")[2]])
            return {key: put_in(value) for key, value in node.items()}
        return [put_in(item) for item in node] if isinstance(node, list) else node

    whole: dict[str, Any] = put_in(schema)
    return whole


MAX_PROMPTS = 32


def prompts_of(prompt: object) -> list[str | list[int]]:
    """Return the prompts of a request, one or more, none empty.

    Raises:
        InvalidRequestError: it is none of the four forms.
    """
    if isinstance(prompt, str) and prompt:
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if _are_token_ids(prompt):
            return [prompt]
        if len(prompt) > MAX_PROMPTS:
            raise InvalidRequestError(f"prompt has {len(prompt)} prompts; {MAX_PROMPTS} are allowed in one request.")
        if all(
            (isinstance(one, str) and one) or (isinstance(one, list) and one and _are_token_ids(one)) for one in prompt
        ):
            return prompt  # fmt: skip
    raise InvalidRequestError(
        f"prompt = {str(prompt)[:60]!r} cannot be read. Send a text, a list of token ids, or a list of either, "
        "none empty."
    )


def _are_token_ids(listed: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in listed)


class Answer(BaseModel):
    """Base of answers: every key is documented."""

    model_config = ConfigDict(extra="forbid", frozen=True)


DraftedAt = Annotated[
    int | None,
    Field(
        description="Lossless: decoder layers that ran before a draft of this place was made, 0 where a draft source "
        "proposed it; null without a draft, and of lossy decoding."
    ),
]

Accepted = Annotated[
    bool | None,
    Field(
        description="Lossless: whether the token is the draft's; else full depth said it, in place of the draft if "
        "there was one. null of lossy decoding."
    ),
]


class DraftReport(Answer):
    """Drafts of lossless decoding and how many were accepted."""

    model_config = ConfigDict(from_attributes=True)

    drafted_at: Annotated[list[int | None], Field(description="For each token, see drafted_at of a token.")]
    accepted: Annotated[list[bool], Field(description="For each token, see accepted of a token.")]
    drafted_tokens: Annotated[int, Field(description="Discarded ones included.")]
    accepted_tokens: Annotated[int, Field(description="Those that full depth agreed with.")]
    verifications: Annotated[int, Field(description="Passes through all layers after prefill.")]
    layers_discarded: Annotated[int, Field(description="Decoder layers run for drafted tokens that were discarded.")]
    acceptance: Annotated[float | None, Field(description="Accepted of drafted tokens; null without any.")]
    tokens_per_verification: Annotated[
        float | None, Field(description="Tokens after prefill's per verification; null without any.")
    ]


class EarlyExitReport(Answer):
    """``x_early_exit``: the effective setting and what it did."""

    strategy: str
    options: Annotated[dict[str, str | int | float | bool | None], Field(description="Every option with its value.")]
    kv: Annotated[str, Field(description="What became of K,V of skipped layers.")]
    decode: Annotated[str, Field(description="lossy, or lossless with its draft source: full depth's tokens.")]
    draft_max: Annotated[int | None, Field(description="Longest draft; null of lossy decoding.")]
    draft_head: Annotated[
        str | None, Field(description="What reads the tokens that exits draft; null of lossy decoding.")
    ]
    stop_rule: Annotated[str | None, Field(description="Rule that might end it beside its stop texts; null without.")]
    stopped_by: Annotated[str | None, Field(description="Name of that rule if it ended it; null for anything else.")]
    drafts: Annotated[DraftReport | None, Field(description="null of lossy decoding.")]
    num_layers: Annotated[int, Field(description="Decoder layers of the model.")]
    exit_layers: Annotated[list[int], Field(description="Decoder layers executed for each token.")]
    layers_executed: Annotated[int, Field(description="Their sum.")]
    layers_skipped: Annotated[int, Field(description="What full depth would have executed on top.")]
    decode_layers: Annotated[
        int, Field(description="Decoder layers run after prefill, catch-up work of kv = recompute included.")
    ]
    exit_checks: Annotated[int, Field(description="Times the strategy was asked.")]
    lm_head_evaluations: Annotated[int, Field(description="After prefill, the outputs' own included.")]
    counts: Annotated[
        dict[str, int], Field(description="Every counter of this completion by the name it has in samples.jsonl.")
    ]
    ending: Ending
    prompt_tokens: int
    prompt_tokens_reused: Annotated[
        int, Field(description="Of these, not read again: an earlier prompt of the same API key began with them.")
    ]
    prompt_tokens_truncated: Annotated[int, Field(description="Cut off the prompt's beginning.")]
    suffix: Annotated[
        Literal["none", "used", "ignored"], Field(description="What became of the text after the cursor.")
    ]
    queue_s: Annotated[float, Field(description="Seconds in the queue.")]
    ttft_s: Annotated[float, Field(description="Seconds from arrival to the first token.")]
    total_s: Annotated[float, Field(description="Seconds from arrival to the last token.")]
    energy_j: Annotated[
        float | None, Field(description="This request's share, joules, measured or estimated; null without a number.")
    ]
    energy_source: Annotated[str, Field(description="A sensor, or an estimate, or none.")]


class TgiError(Answer):
    """TGI's; Ollama's clients and llm-ls read its ``error``."""

    error: str
    error_type: str


class OpenAIErrorDetail(Answer):
    """Inside of OpenAI's."""

    message: str
    type: str
    param: None = None
    code: Annotated[int, Field(description="HTTP status.")]


class LlmLsErrorDetail(Answer):
    """OpenAI's errors in the shape that llm-ls shows."""

    loc: str
    msg: str
    type: str


class OpenAIError(Answer):
    """OpenAI's, and the same where llm-ls looks for it."""

    error: OpenAIErrorDetail
    detail: list[LlmLsErrorDetail]


class LlamaCppErrorDetail(Answer):
    """Inside of llama.cpp's."""

    code: Annotated[int, Field(description="HTTP status.")]
    message: str
    type: str


class LlamaCppError(Answer):
    """llama.cpp's."""

    error: LlamaCppErrorDetail


MEANINGS = {
    401: "The key is missing or wrong.",
    403: "A web page of another origin, or a host name that is not this server's.",
    413: "The body is larger than the server takes.",
    422: "The request cannot be served as it is written.",
    424: "Generating failed; the next request works.",
    429: "The queue is full, or the request waited in it for too long. Try again later.",
    500: "A defect of the server; see its log.",
    503: "The model is still loading, or the server is shutting down.",
}


def documented(body: type[Answer]) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a dialect's routes, as FastAPI's ``responses``."""
    return {status: {"model": body, "description": meaning} for status, meaning in MEANINGS.items()}
