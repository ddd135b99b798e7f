"""A request in a client's words, and the words of its answer: the base of all dialects.

Clients send ``null`` for what they do not set: it counts as not given. What would change a completion is read, or is
refused unless its value changes nothing (``unchanging``); other fields are accepted and ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, FailFast, Field, StrictBool, WithJsonSchema, model_validator

from harness.decoding.generation import Token
from harness.serving.completions import Ending, Finished, InvalidRequestError, Job, ServingError

MAX_PROMPTS = 32

SAMPLING: Mapping[str, tuple[Any, ...]] = {"temperature": (0,), "top_p": (1,), "top_k": (0, -1, 1), "min_p": (0,)}
PENALTIES: Mapping[str, tuple[Any, ...]] = {"frequency_penalty": (0,), "presence_penalty": (0,)}
"""Parameters that most dialects have → the values at which they change nothing of greedy decoding."""


def _texts(value: object) -> list[object]:
    return [item for item in (value if isinstance(value, list) else [value]) if item not in (None, "")]


def _prompts(prompt: object) -> list[str | list[int]]:
    """Return the prompts of a request, one or more, none empty."""
    if isinstance(prompt, list) and prompt and not _are_token_ids(prompt):
        if len(prompt) > MAX_PROMPTS:
            raise InvalidRequestError(f"prompt has {len(prompt)} prompts; {MAX_PROMPTS} are allowed in one request.")
        prompts = prompt
    else:
        prompts = [prompt]
    if all(one and (isinstance(one, str) or (isinstance(one, list) and _are_token_ids(one))) for one in prompts):
        return prompts
    raise InvalidRequestError(
        f"prompt = {str(prompt)[:60]!r} cannot be read. Send a text, a list of token ids, or a list of either, "
        "none empty."
    )


def _are_token_ids(listed: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in listed)


Flag = StrictBool
Seed = Annotated[int, Field(description="For random strategies.")]
Texts = Annotated[
    tuple[str, ...],
    FailFast(),
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}]}),
]
_TOKEN_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_ONE: dict[str, Any] = {"anyOf": [{"type": "string", "minLength": 1}, _TOKEN_IDS]}
_SEVERAL: dict[str, Any] = {"type": "array", "items": _ONE, "minItems": 1, "maxItems": MAX_PROMPTS}
OnePrompt = Annotated[Any, BeforeValidator(_prompts), WithJsonSchema(_ONE)]
Prompts = Annotated[Any, BeforeValidator(_prompts), WithJsonSchema({"anyOf": [*_ONE["anyOf"], _SEVERAL]})]

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
    WithJsonSchema({"type": ["object", "string", "null"]}),
]


class Fields(BaseModel):
    """An object of a body: fields that are read, those that are ``unchanging``, and nothing said of any other."""

    unchanging: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # parameter that is not served → values to accept

    @model_validator(mode="before")
    @classmethod
    def _given(cls, body: Any) -> Any:
        if not isinstance(body, Mapping):
            return body
        given = {name: value for name, value in body.items() if value is not None}
        greedy = given.get("temperature") in (0, "0")  # then nothing is sampled, whatever says how
        for name, accepted in cls.unchanging.items():
            if name in given and given[name] not in accepted and not (greedy and name in SAMPLING):
                said = f"{name} = {str(given[name])[:60]!r}: decoding is greedy, and this server cannot do it."
                raise InvalidRequestError(f"{said} Send {name} = {json.dumps(accepted[0])}, or omit it.", name)
        return given


class Dialect(Fields):
    """A request, whose fields are all that is read of its body, and the words of its answer.

    It is validated with the service as its context, and lives as long as its answer. The base has TGI's words for
    errors, which most clients can read.
    """

    client: ClassVar[str]
    paths: ClassVar[Mapping[str, str]]  # path → the first line of its documentation
    prefixes: ClassVar[tuple[str, ...]] = ()  # where its errors are spoken besides
    answers: ClassVar[str]  # in a sentence for the schema
    media_type: ClassVar[str] = "text/event-stream"
    frame: ClassVar[tuple[bytes, bytes]] = (b"data: ", b"\n\n")  # before and behind each event
    closing: ClassVar[bytes] = b""  # the end of a stream that is complete
    reasons: ClassVar[tuple[str, str, str]]  # an end token, a text or rule that ends it, a limit of tokens or time

    early_exit: Controls = None
    model: str | None = Field(default=None, description="The model that is served, if any is named.")
    _service: Any = None

    @model_validator(mode="before")
    @classmethod
    def _find_early_exit(cls, body: Any) -> Any:
        """Find early exit in the body, its ``parameters``, those within, or its ``options``."""
        if not isinstance(body, Mapping):
            return body
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

    def jobs(self, make: Callable[..., Job]) -> list[Job]:
        """Return what is to be completed; ``make`` is :meth:`harness.serving.service.Service.job`."""
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


def limit_of(tokens: int | None) -> int | None:
    """Return a limit of tokens where -1 and -2 stand for none."""
    return None if tokens in (-1, -2) else tokens


def token_report(token: Token) -> dict[str, Any]:
    """Return what every dialect says of a token beside its own words."""
    return {"exit_layer": token.exit_layer, "drafted_at": token.drafted_at, "accepted": token.accepted}


def finite(number: float) -> float | None:
    """Return a number as JSON can represent it; ``None`` for infinity and NaN, which half precision can produce."""
    return number if math.isfinite(number) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
