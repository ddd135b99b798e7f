"""A request in a client's words, and the words of its answer: the base of all dialects.

Clients send ``null`` for what they do not set, and sometimes whole numbers as ``20.0`` or as text. What can be parsed
is used and ``null`` counts as not given; a field that is read and cannot be is refused, and never becomes its default
without a word. Every other field is accepted and ignored, and stands in no schema.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, model_validator

from harness.decoding.generation import Token
from harness.serving.completions import Ending, Finished, InvalidRequestError, ServingError, Wanted


def refused(name: str | None, value: object, wanted: str) -> InvalidRequestError:
    """Return the refusal of a field that is read and cannot be."""
    return InvalidRequestError(f"{name} = {str(value)[:60]!r} is not {wanted}. Send {wanted}, or leave it out.")


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


def limit_reader(*endless: int, least: int = 1) -> Callable[[object, ValidationInfo], int | None]:
    """Return the reader of a limit of new tokens, ``None`` where there is none but the server's cap.

    Unlike what is ignored, a limit that cannot be meant must not become the cap without a word. A number written as
    text is one, as everywhere; a float is none, whatever stands behind its point.

    Args:
        endless: numbers with which the dialect says that there is no limit.
        least: smallest limit.
    """
    others = f", or {' or '.join(map(str, endless))} for the server's limit" if endless else ""

    def read(value: object, info: ValidationInfo) -> int | None:
        number = None if isinstance(value, float) else whole_number(value)
        if value is None or number in endless:
            return None
        if number is None or number < least:
            raise InvalidRequestError(
                f"{info.field_name} = {str(value)[:60]!r} is no limit of tokens. Send an integer from 1{others}."
            )
        return number

    return read


def _whole(value: object, info: ValidationInfo) -> int | None:
    number = whole_number(value)
    if value is not None and number is None:
        raise refused(info.field_name, value, "a whole number")
    return number


def _seed(value: object, info: ValidationInfo) -> int:
    return (_whole(value, info) or 0) % 2**63  # every generator of random numbers takes it


def _instance(kinds: type | tuple[type, ...], wanted: str, default: object) -> Callable[[object, ValidationInfo], Any]:
    def read(value: object, info: ValidationInfo) -> object:
        if value is not None and not isinstance(value, kinds):
            raise refused(info.field_name, value, wanted)
        return default if value is None else value

    return read


def _texts(value: object, info: ValidationInfo) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [value]
    if not all(item is None or isinstance(item, str) for item in listed):
        raise refused(info.field_name, value, "a text or a list of texts")
    return tuple(str(item) for item in listed if item)


Whole = Annotated[int | None, BeforeValidator(_whole)]
Seed = Annotated[int, BeforeValidator(_seed), Field(description="For random strategies.")]
Limit = Annotated[int | None, BeforeValidator(limit_reader())]
Text = Annotated[str | None, BeforeValidator(_instance(str, "a text", None))]
Flag = Annotated[bool, BeforeValidator(_instance(bool, "true or false", False))]
SetFlag = Annotated[bool, BeforeValidator(_instance(bool, "true or false", True))]
"""A switch that is on where it was not given."""
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}]}),
]
read_object = BeforeValidator(_instance(Mapping, "an object", {}))
"""For a field with fields of its own."""

MAX_PROMPTS = 32


def _prompts(prompt: object) -> list[str | list[int]]:
    """Return the prompts of a request, one or more, none empty: read by hand, since a validator would report an error
    for each of a million bad items.
    """
    if isinstance(prompt, str) and prompt:
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if _are_token_ids(prompt):
            return [prompt]
        if len(prompt) > MAX_PROMPTS:
            raise InvalidRequestError(f"prompt has {len(prompt)} prompts; {MAX_PROMPTS} are allowed in one request.")
        if all(one and (isinstance(one, str) or (isinstance(one, list) and _are_token_ids(one))) for one in prompt):
            return prompt
    raise InvalidRequestError(
        f"prompt = {str(prompt)[:60]!r} cannot be read. Send a text, a list of token ids, or a list of either, "
        "none empty."
    )


def _are_token_ids(listed: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in listed)


_TOKEN_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}


def _prompt_of(*forms: dict[str, Any]) -> Any:
    return Annotated[Any, BeforeValidator(_prompts), WithJsonSchema({"anyOf": forms})]


OnePrompt = _prompt_of(_TEXT, _TOKEN_IDS)
Prompts = _prompt_of(
    _TEXT,
    _TOKEN_IDS,
    *({"type": "array", "items": each, "minItems": 1, "maxItems": MAX_PROMPTS} for each in (_TEXT, _TOKEN_IDS)),
)
"""The four forms a prompt has with OpenAI's clients, of which llama.cpp's know two."""

Controls = Annotated[
    Any,
    Field(
        description="Early exit of this request: {strategy: NAME, option: value, …}, or 'NAME:option=value'. GET /info "
        "lists strategies, options and limits. Beside them: decode, lossless (exits draft, full depth verifies: its "
        "own tokens, in bursts) or lossy (what exits say); draft, a source that proposes tokens first, as lookup; "
        "draft_max, the longest draft; stop_rule, what ends it beside its stop texts, as statement:language=python, or "
        "none. It may stand in parameters or options too; without it the header X-Early-Exit, then the query's "
        "early_exit, then the server's default counts.",
        examples=[{"threshold": 0.9, "decode": "lossless", "draft": "lookup", "draft_max": 8}],
    ),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
                {"type": ["string", "null"]},
            ]
        }
    ),
]


class Dialect(BaseModel):
    """A request, whose fields are all that is read of its body, and the words of its answer.

    It is validated with the service as its context, and lives as long as its answer. The base has TGI's words for
    errors, which most clients can read.

    Attributes:
        client: whose dialect it is.
        paths: path → the first line of its documentation.
        prefixes: where its errors are spoken besides.
        answers: its answer, in a sentence for the schema.
        media_type: of a stream.
        frame: what stands before and behind each event.
        closing: the last bytes of a stream that is complete.
        reasons: how it names an end token, a text or rule that ends a completion, and a limit of tokens or time.
    """

    model_config = ConfigDict(extra="ignore")

    client: ClassVar[str]
    paths: ClassVar[Mapping[str, str]]
    prefixes: ClassVar[tuple[str, ...]] = ()
    answers: ClassVar[str]
    media_type: ClassVar[str] = "text/event-stream"
    frame: ClassVar[tuple[bytes, bytes]] = (b"data: ", b"\n\n")
    closing: ClassVar[bytes] = b""
    reasons: ClassVar[tuple[str, str, str]]

    early_exit: Controls = None
    _service: Any = None

    @model_validator(mode="before")
    @classmethod
    def _find_early_exit(cls, body: Any) -> Any:
        """Find early exit in the body, its ``parameters``, those within, or its ``options``."""
        outer = _mapping(body.get("parameters"))
        places = (body, outer, _mapping(outer.get("parameters")), _mapping(body.get("options")))
        given = next((place["early_exit"] for place in places if place.get("early_exit") is not None), None)
        return {**body, "early_exit": given}

    def model_post_init(self, context: Any) -> None:
        """Keep the service."""
        self._service = context

    @property
    def streams(self) -> bool:
        """Whether the answer comes token by token."""
        return bool(getattr(self, "stream", False))

    def at_once(self) -> dict[str, Any] | None:
        """Return an answer for which nothing is decoded, if there is one."""
        return None

    def wanted(self) -> list[Wanted]:
        """Return what is to be completed.

        Raises:
            InvalidRequestError: it cannot be.
        """
        raise NotImplementedError

    def chunk(self, place: int, token: Token) -> Sequence[dict[str, Any]]:
        """Return the events of a token of the prompt at a place."""
        raise NotImplementedError

    def last(self, place: int, done: Finished) -> Sequence[dict[str, Any]]:
        """Return the events of an ending."""
        raise NotImplementedError

    def whole(self, endings: Sequence[Finished]) -> Any:
        """Return the answer that is not streamed."""
        raise NotImplementedError

    @classmethod
    def error(cls, message: str, error: ServingError) -> dict[str, Any]:
        """Return an error answer, also as the event that ends a stream which failed half-way."""
        return {"error": message, "error_type": error.kind}

    @classmethod
    def reason(cls, ending: Ending) -> str:
        """Return the dialect's name of an ending."""
        return cls.reasons[{"eos": 0, "stop": 1, "strategy": 1, "length": 2, "deadline": 2}[ending]]


def token_report(token: Token) -> dict[str, Any]:
    """Return what every dialect says of a token beside its own words."""
    return {"exit_layer": token.exit_layer, "drafted_at": token.drafted_at, "accepted": token.accepted}


def finite(number: float) -> float | None:
    """Return a number as JSON can represent it; ``None`` for infinity and NaN, which half precision can produce."""
    return number if math.isfinite(number) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
