"""Every operating point against full depth: paired ratios and differences, what chance explains of them, and words.

Costs are ratios of totals, paired by block (requests, energy) or by sample (decoding); accuracy is the mean difference
paired by sample. Each comparison has a bootstrap interval and the p-value of a paired permutation test
(:mod:`reports.statistics.significance`). The operating points of one table are one family: Holm's correction is made
over them, for each measure by itself.

A difference is said to be there only when its corrected p-value is at most 0.05 **and** its interval excludes "no
difference". Otherwise it is *not distinguishable*, which does not mean equal; and where so few pairs were measured that
even the clearest outcome could not pass the test, the words are *too few pairs to tell*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.records.summary import SummaryRow
from reports.statistics.intervals import MINIMUM_PAIRS, Pair, bootstrap_interval, mean, mean_interval, paired_ratio
from reports.statistics.significance import LEVEL, holm, ratio_p, sign_flip_p, smallest_p
from reports.summary.energy import UNMEASURED, has_energy
from reports.summary.measured import Measured

__all__ = [
    "MEASURES",
    "NOT_DISTINGUISHABLE",
    "TOO_FEW",
    "Comparison",
    "compare",
    "corrected",
    "is_distinguishable",
    "verdict",
]

RATIOS = ("speedup", "decode_speedup", "energy_ratio", "energy_net_ratio")
SCORES = ("edit_similarity", "exact_match", "codebleu")
MEASURES = (*RATIOS, *(f"{score}_difference" for score in SCORES))
"""Fields of the summary row that compare with full depth."""

NOT_DISTINGUISHABLE = "not distinguishable from full depth"
TOO_FEW = "too few pairs to tell"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of one operating point against full depth.

    Attributes:
        measure: field of the summary row.
        value: ratio (above 1 is cheaper than full depth) or difference (above 0 is better).
        interval: bootstrap 95 %.
        p: of a paired permutation test.
        pairs: independent units compared.
        p_holm: corrected over the family. family: operating points tested on this measure.
    """

    measure: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    pairs: int = 0
    p_holm: float | None = None
    family: int = 0

    @property
    def fields(self) -> dict[str, float | tuple[float, float] | None]:
        """What it adds to the summary row."""
        name = self.measure
        return {name: self.value, f"{name}_ci": self.interval, f"{name}_p": self.p, f"{name}_p_holm": self.p_holm}

    @property
    def distinguishable(self) -> bool:
        """Whether test and interval both say that there is a difference."""
        return _passes(self.measure, self.p_holm, self.interval)

    @property
    def too_few(self) -> bool:
        """Whether not even the clearest outcome of so many pairs could be told from chance in this family."""
        few = self.pairs < MINIMUM_PAIRS or smallest_p(self.pairs) * self.family > LEVEL
        return few and not self.distinguishable


def compare(cell: Measured, full: Measured, idle_w: float | None) -> tuple[Comparison, ...]:
    """Compare one operating point with full depth on every measure, in the order of ``MEASURES``.

    Full depth itself is the baseline: ratios of 1 by definition, without interval or test.

    Args:
        cell: the operating point.
        full: full depth.
        idle_w: idle power; the ratio net of idle needs it.
    """
    energies = has_energy(cell, full)
    measured = {"speedup": True, "decode_speedup": True, "energy_ratio": energies}
    measured["energy_net_ratio"] = energies and idle_w is not None
    if cell is full:
        ones = [Comparison(name, 1.0 if cell.samples and measured[name] else None) for name in RATIOS]
        return (*ones, *(Comparison(f"{score}_difference") for score in SCORES))
    pairs = {
        "speedup": cell.window_pairs(full),
        "decode_speedup": cell.decode_pairs(full),
        "energy_ratio": cell.energy_pairs(full) if energies else [],
        "energy_net_ratio": cell.energy_pairs(full, idle_w) if energies and idle_w is not None else [],
    }
    return (
        *(_ratio(name, pairs[name]) for name in RATIOS),
        *(_difference(f"{score}_difference", _differences(cell, full, score)) for score in SCORES),
    )


def corrected(family: Sequence[Sequence[Comparison]]) -> list[tuple[Comparison, ...]]:
    """Return the comparisons of the operating points of one table with Holm's correction made, measure by measure."""
    columns = []
    for column in zip(*family, strict=True):
        tested = sum(one.p is not None for one in column)
        p_values = holm([one.p for one in column])
        columns.append([replace(one, p_holm=p, family=tested) for one, p in zip(column, p_values, strict=True)])
    return list(zip(*columns, strict=True))


def verdict(cell: Measured, full: Measured, comparisons: Sequence[Comparison], source: str, weights: str) -> str | None:
    """Say in words how an operating point compares with full depth; ``None`` when one has no finished sample.

    Energy is named when a sensor measured it, accuracy unless the weights are random, exact match and CodeBLEU when
    something can be said about them.

    Args:
        cell: the operating point.
        full: full depth.
        comparisons: of the cell, corrected.
        source: of its energy.
        weights: kind of weights.
    """
    if cell is full or not cell.samples or not full.samples:
        return "the baseline" if cell is full and cell.samples else None
    by_name = {one.measure: one for one in comparisons}
    told = [by_name["decode_speedup"], by_name["speedup"]]
    if source not in UNMEASURED:
        told.append(by_name["energy_ratio"])
    if weights != "random":
        told.append(by_name["edit_similarity_difference"])
        told.extend(one for one in comparisons[-2:] if one.distinguishable)
    told = [one for one in told if one.value is not None]
    if all(one.too_few for one in told):
        return TOO_FEW
    if not any(one.distinguishable or one.too_few for one in told):
        return NOT_DISTINGUISHABLE + _always_the_same(told)
    return "; ".join(map(_words, told))


def is_distinguishable(row: SummaryRow, measure: str) -> bool:
    """Whether a finished row's comparison passed; false for a field that is no comparison with full depth."""
    return measure in MEASURES and _passes(measure, getattr(row, f"{measure}_p_holm"), getattr(row, f"{measure}_ci"))


def _passes(measure: str, p_holm: float | None, interval: tuple[float, float] | None) -> bool:
    if p_holm is None or interval is None:
        return False
    no_difference = 1.0 if measure in RATIOS else 0.0
    return p_holm <= LEVEL and not interval[0] <= no_difference <= interval[1]


def _ratio(name: str, pairs: Sequence[Pair]) -> Comparison:
    return Comparison(name, paired_ratio(pairs), bootstrap_interval(pairs), ratio_p(pairs), len(pairs))


def _difference(name: str, values: Sequence[float]) -> Comparison:
    return Comparison(name, mean(values), mean_interval(values), sign_flip_p(values), len(values))


def _differences(cell: Measured, full: Measured, score: str) -> list[float]:
    """Score here minus score at full depth for each sample that has both; later repeats say nothing new."""
    theirs = {sample.sample_id: sample.scores.get(score) for sample in full.scored}
    found = []
    for sample in cell.scored:
        here, there = sample.scores.get(score), theirs.get(sample.sample_id)
        if here is not None and there is not None:
            found.append(here - there)
    return found


_COSTS = {
    "speedup": ("whole requests {} faster", "whole requests {} slower", "request time"),
    "decode_speedup": ("decodes {} faster", "decodes {} slower", "decoding speed"),
    "energy_ratio": ("{} less energy", "{} more energy", "energy"),
}


def _words(one: Comparison) -> str:
    noun = (
        _COSTS[one.measure][2] if one.measure in _COSTS else one.measure.removesuffix("_difference").replace("_", " ")
    )
    if not one.distinguishable:
        return f"{noun} {TOO_FEW if one.too_few else 'not distinguishable'}{_always_the_same([one])}"
    assert one.value is not None
    assert one.interval is not None
    if one.measure not in _COSTS:
        low, high = sorted(map(abs, one.interval))
        return f"{noun} {abs(one.value):.3f} {'higher' if one.value > 0 else 'lower'} [{low:.3f}, {high:.3f}]"
    better, worse, _ = _COSTS[one.measure]
    gain = [100 * _gain(one.measure, ratio) for ratio in (one.value, *one.interval)]
    decimals = 1 if abs(gain[0]) < 10 else 0
    low, high = sorted(map(abs, gain[1:]))
    amount = f"{abs(gain[0]):.{decimals}f} %"
    return f"{(better if gain[0] > 0 else worse).format(amount)} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _gain(measure: str, ratio: float) -> float:
    """What a ratio of full depth's cost over this one's means: more speed, or less energy, as a fraction."""
    return 1 - 1 / ratio if measure == "energy_ratio" else ratio - 1


def _always_the_same(told: Sequence[Comparison]) -> str:
    """An observation, not a conclusion: this score did not differ on any sample."""
    same = [one for one in told if one.measure not in RATIOS and one.interval == (0.0, 0.0)]
    return f" ({same[0].pairs} of {same[0].pairs} samples score the same)" if same else ""
