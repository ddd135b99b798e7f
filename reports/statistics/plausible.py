"""Which numbers can be true: JSON may hold 1e308 seconds; a table, an axis or a sum cannot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LARGEST = 1e12
"""Size of a number beyond which it cannot be true, in its SI unit: 30,000 years, or what a town uses up in a year."""

SMALLEST = 1 / LARGEST
"""Size of a time or an energy below which nothing was measured: no clock tells a picosecond."""


def is_plausible(number: float) -> bool:
    """Whether a number can be true; NaN, an infinity and an integer of any size are answered for, too."""
    return -LARGEST <= number <= LARGEST


def plausible(number: float | None) -> float | None:
    """Return a number that can be true; ``None`` instead of another one."""
    return number if number is not None and is_plausible(number) else None


def is_measurable(number: float) -> bool:
    """Whether a time or an energy can have been measured: none at all, or between the smallest and the largest."""
    return number == 0 or SMALLEST <= number <= LARGEST


def all_plausible(numbers: Iterable[float | None]) -> bool:
    """Whether all numbers that are there can be true."""
    return all(is_plausible(number) for number in numbers if number is not None)


def numbers_of(value: Any) -> Iterable[float]:
    """Yield every number in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from numbers_of(inner)
    elif isinstance(value, int | float):
        yield value
