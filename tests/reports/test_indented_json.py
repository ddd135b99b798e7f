"""Indented JSON is that of the standard library, character by character."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from reports.indented_json import indented

LEAVES = (
    None,
    True,
    0,
    -7,
    10**17,
    0.1,
    1e-05,
    1e22,
    -0.0,
    float("inf"),
    float("nan"),
    "",
    "a",
    'quoted "\\',
    "line\nline",
    "\x1b\u202eé😀",
)


def made_up(chance: random.Random, depth: int) -> Any:
    """A value of any shape, none deeper than so many levels."""
    kind = chance.choice(("leaf", "dict", "list", "tuple")) if depth else "leaf"
    if kind == "leaf":
        return chance.choice(LEAVES)
    parts = [made_up(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind == "dict":
        return {str(chance.choice(LEAVES)) + str(place): part for place, part in enumerate(parts)}
    return parts if kind == "list" else tuple(parts)


@pytest.mark.parametrize("seed", range(50))
def test_it_is_what_the_standard_library_writes(seed: int) -> None:
    value = made_up(random.Random(seed), 5)
    text = indented(value)
    assert text == json.dumps(value, indent=2)
    assert indented([value]) == f"[\n  {indented(value, chr(10) + '  ')}\n]"


@pytest.mark.parametrize("value", [*LEAVES, {}, [], [[]], {"a": {}}, {"a": [], "b": {"c": 1}}])
def test_small_values(value: Any) -> None:
    assert indented(value) == json.dumps(value, indent=2)
