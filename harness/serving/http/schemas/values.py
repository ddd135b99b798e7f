"""Values as clients write them: what can be parsed is used, anything else counts as not given.

Clients send ``null`` for what they do not set, and sometimes numbers as text. A request must not fail for a field
that this server would ignore anyway, so foreign fields take anything, and their schema says so. The limit of new tokens
is used, and refused where it is none (:func:`limit_of`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import WithJsonSchema

from harness.serving.failures import InvalidRequestError

__all__ = ["Controls", "Lenient", "Limit", "finite", "flag", "limit_of", "seed_of", "texts", "whole_number"]

Lenient = Annotated[Any, WithJsonSchema({})]
"""A field that takes anything; its description says what is used."""

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


def seed_of(value: object) -> int:
    """Return a seed that every generator of random numbers takes; 0 where none was given."""
    return (whole_number(value) or 0) % 2**63


def texts(value: object) -> tuple[str, ...]:
    """Return the texts of one text or a list of them; empty items and other types are omitted."""
    listed = value if isinstance(value, list) else [value]
    return tuple(item for item in listed if isinstance(item, str) and item)


def flag(value: object) -> bool:
    """Return whether a switch is on: only ``true`` is."""
    return value is True


def finite(number: float) -> float | None:
    """Return a number as JSON can represent it; ``None`` for infinity and NaN, which half precision can produce."""
    return number if math.isfinite(number) else None
