"""Values as clients write them: what can be parsed is used, anything else counts as not given.

Clients send ``null`` for what they do not set, and sometimes numbers as text. A request must not fail for a field
that this server would ignore anyway, so foreign fields take anything, and their schema says so.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import WithJsonSchema

__all__ = ["Controls", "Lenient", "finite", "flag", "limit_of", "seed_of", "texts", "whole_number"]

Lenient = Annotated[Any, WithJsonSchema({})]
"""A field that takes anything; its description says what is used."""

Controls = Annotated[
    Any,
    WithJsonSchema(
        {
            "description": "Early exit of this request: {strategy: NAME, option: value, …}, or 'NAME:option=value'. "
            "GET /info lists strategies, options and limits. Without it the header X-Early-Exit, then the query's "
            "early_exit, then the server's default counts.",
            "examples": [{"threshold": 0.9}],
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"strategy": {"type": ["string", "null"]}},
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


def limit_of(value: object) -> int | None:
    """Return the limit of new tokens; 0 becomes 1, the minimum, and a negative number means no limit."""
    number = whole_number(value)
    return None if number is None or number < 0 else max(number, 1)


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
