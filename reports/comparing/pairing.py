"""Which work of two runs is the same: prompts in common, and units of them, joined where the runs form other blocks.

Two runs with blocks of 4 and of 8 prompts share hardly a block, and the one they share (a short last one) says nothing
about the rest. So units that overlap are joined until both runs have the same prompts in them: the finest partition
that both can be sorted into. It pairs only if it holds nearly all prompts and is not much coarser than the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.contracts import Metric
from harness.records import SampleRecord
from reports.metrics.point import Units, added
from reports.summary.measured import Measured

JOINED = "blocks joined until both runs have the same prompts in them"
"""Said beside a number that rests on joined blocks."""

_NEARLY_ALL = 0.9  # of the prompts that both measured
_NOT_MUCH_COARSER = 0.5  # joined units per unit of the run that has fewer


@dataclass(frozen=True, slots=True)
class Matched:
    """Prompts that two operating points have in common.

    Attributes:
        same: ids with the same prompt tokens in both, finished in both.
        same_reference: those of them that are also scored against the same reference.
        in_a, in_b: prompts that each finished.
    """

    same: frozenset[str]
    same_reference: frozenset[str]
    in_a: int
    in_b: int

    @property
    def paired(self) -> bool:
        """Whether there is anything to pair."""
        return bool(self.same)

    @property
    def words(self) -> str:
        """How many matched."""
        if not self.same:
            return f"no prompt in common (A has {self.in_a}, B {self.in_b}): unpaired"
        if len(self.same) == self.in_a == self.in_b:
            return f"all {len(self.same)} prompts matched"
        return f"{len(self.same)} prompts matched (A has {self.in_a}, B {self.in_b})"


def match(a: Measured, b: Measured) -> Matched:
    """Return the prompts of two operating points that have the same id and the same tokens."""
    mine, theirs = _first(a), _first(b)
    same = [key for key in mine if key in theirs and mine[key].prompt_ids == theirs[key].prompt_ids]
    alike = [key for key in same if mine[key].reference == theirs[key].reference]
    return Matched(frozenset(same), frozenset(alike), len(mine), len(theirs))


def agreement_units(a: Measured, b: Measured, matched: Matched) -> Units:
    """Return places with the same token in both and places of the longer completion, by prompt; first repeats alone."""
    found = {}
    for sample_id in sorted(matched.same):
        mine, theirs = a.samples.get((sample_id, 0)), b.samples.get((sample_id, 0))
        if mine is not None and theirs is not None and not (mine.answer or theirs.answer):
            alike = sum(x == y for x, y in zip(theirs.token_ids, mine.token_ids, strict=False))
            found[frozenset([sample_id])] = (float(alike), float(max(len(mine.token_ids), len(theirs.token_ids))))
    return found


def _first(cell: Measured) -> dict[str, SampleRecord]:
    found: dict[str, SampleRecord] = {}
    for (sample_id, _), sample in cell.samples.items():
        found.setdefault(sample_id, sample)
    return found


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
