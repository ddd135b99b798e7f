"""Values as clients write them: what can be parsed is used, ``null`` counts as not given, anything else is refused.

Clients send ``null`` for what they do not set, and sometimes whole numbers as ``20.0`` or as text. A field that this
server does not use takes anything; one that it documents as used and that cannot be read is refused, and never
becomes its default without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import WithJsonSchema

from harness.serving.failures import InvalidRequestError

__all__ = [
    "Anything",
    "Controls",
    "Flag",
    "Limit",
    "Object",
    "Text",
    "Texts",
    "Whole",
    "finite",
    "flag",
    "limit_of",
    "object_of",
    "refused",
    "seed_of",
    "text_of",
    "texts",
    "whole_number",
    "whole_of",
]

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
