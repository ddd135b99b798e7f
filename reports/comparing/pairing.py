"""Which work of two runs is the same: units of equal prompts, joined where the runs form their blocks differently.

Two runs with blocks of 4 and of 8 prompts share hardly a block, and the one they share (a short last one) says nothing
about the rest. So units that overlap are joined until both runs have the same prompts in them: the finest partition
that both can be sorted into. It pairs only if it holds nearly all prompts and is not much coarser than the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.contracts import Metric
from reports.metrics.units import Units, added

__all__ = ["JOINED", "Pairs", "pair_units"]

JOINED = "blocks joined until both runs have the same prompts in them"
"""Said beside a number that rests on joined blocks."""

_NEARLY_ALL = 0.9  # of the prompts that both measured
_NOT_MUCH_COARSER = 0.5  # joined units per unit of the run that has fewer


@dataclass(frozen=True, slots=True)
class Pairs:
    """Units of two runs under the same keys.

    Attributes:
        a, b: their rows, in A's order.
        joined: some hold several units of a run.
    """

    a: Units
    b: Units
    joined: bool


def pair_units(metric: Metric, a: Units, b: Units, common: frozenset[str]) -> Pairs | None:
    """Return the units of two runs paired, ``None`` where the pairs would leave out or blur too much.

    Args:
        metric: rows of a percentile are strung together, those of a rate added up.
        a: units of A (:func:`reports.metrics.units.units_of`).
        b: units of B.
        common: prompts that may pair.
    """
    measured = common & _prompts(a) & _prompts(b)
    if not measured:
        return None
    same = [part for part in _parts(a, b) if _prompts(part[0]) == _prompts(part[1]) <= common]
    covered = sum(len(_prompts(mine)) for mine, _ in same)
    fewer = min(sum(not key.isdisjoint(measured) for key in units) for units in (a, b))
    if covered < _NEARLY_ALL * len(measured) or len(same) < _NOT_MUCH_COARSER * fewer:
        return None
    before = {_prompts(mine): added(metric, [a[key] for key in mine]) for mine, _ in same}
    after = {_prompts(mine): added(metric, [b[key] for key in theirs]) for mine, theirs in same}
    return Pairs(before, after, any(len(mine) > 1 or len(theirs) > 1 for mine, theirs in same))


def _prompts(keys: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*keys)


def _parts(a: Units, b: Units) -> list[tuple[list[frozenset[str]], list[frozenset[str]]]]:
    """Sort the units of both into parts, as many as there can be without any prompt in two of them."""
    above: dict[str, str] = {}

    def top(prompt: str) -> str:
        while above.setdefault(prompt, prompt) != prompt:
            above[prompt] = prompt = above[above[prompt]]
        return prompt

    for first, *rest in (*a, *b):
        for prompt in rest:
            above[top(prompt)] = top(first)
    parts: dict[str, tuple[list[frozenset[str]], list[frozenset[str]]]] = {}
    for side, units in enumerate((a, b)):
        for key in units:
            parts.setdefault(top(next(iter(key))), ([], []))[side].append(key)
    return list(parts.values())
