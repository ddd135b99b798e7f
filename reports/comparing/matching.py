"""Which prompts two operating points have in common, and on how many of their tokens they agree."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records import SampleRecord
from reports.metrics.units import Units
from reports.summary.measured import Measured

__all__ = ["Matched", "agreement_units", "match"]


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
