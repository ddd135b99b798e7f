"""Which work of two runs is the same: prompts in common, and units of them, joined where the runs form other blocks."""

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
    """Ids of prompts that two operating points finished with the same tokens, and with the same reference, too."""

    same: frozenset[str]
    same_reference: frozenset[str]
    in_a: int
    in_b: int

    @classmethod
    def of(cls, a: Measured, b: Measured) -> Matched:
        """Match the prompts of two operating points."""
        mine, theirs = _first(a), _first(b)
        same = [key for key in mine if key in theirs and mine[key].prompt_ids == theirs[key].prompt_ids]
        alike = [key for key in same if mine[key].reference == theirs[key].reference]
        return cls(frozenset(same), frozenset(alike), len(mine), len(theirs))

    @property
    def words(self) -> str:
        """How many matched."""
        if len(self.same) == self.in_a == self.in_b:
            return f"all {len(self.same)} prompts matched"
        return f"{len(self.same) or 'no'} prompts matched (A has {self.in_a}, B {self.in_b})"


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


def pair_units(metric: Metric, a: Units, b: Units, common: frozenset[str]) -> tuple[Units, Units, bool] | None:
    """Return the units of two runs under the same keys, and whether some hold several units of a run.

    Two runs with blocks of 4 and of 8 prompts share hardly a block, so units that overlap are joined until both runs
    have the same prompts in them: the finest partition that both can be sorted into. ``None`` where that leaves out too
    many of the ``common`` prompts, or is much coarser than the blocks.
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
    return before, after, any(len(mine) > 1 or len(theirs) > 1 for mine, theirs in same)


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
