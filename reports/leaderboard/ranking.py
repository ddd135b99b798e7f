"""Ranks inside one group, and why something does not rank.

**Who may rank.** By a cost (speed-up, energy) only what *keeps* full depth's quality: edit similarity, exact match and
CodeBLEU are not distinguishably lower (Holm-corrected paired test), **and** the 95 % interval of the difference in
edit similarity stays above −0.05: without that a run of few samples would always pass. Where too few samples differ for
an interval, the most of them that may differ (Clopper and Pearson) must stay below 5 %. A lossless operating point
whose tokens are full depth's in every completion keeps its quality by definition.

**Ranks.** One plus the number of rows that are clearly better, that is, whose interval lies wholly above this row's.
Full depth ranks like any other, at 1 exactly. The oracle is a bound and never ranks; random weights never rank; energy
ranks only where a sensor measured it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.records.estimate import NoInterval
from harness.records.summary import SummaryRow
from reports.metrics.evaluation import is_distinguishable
from reports.metrics.speedups import DECODE_SPEEDUP, ENERGY_RATIO, SPEEDUP
from reports.metrics.vocabulary import EDIT_SIMILARITY_DIFFERENCE, metrics_of
from reports.statistics.intervals import largest_share
from reports.tables.result import is_asserted, is_candidate, is_reference

MARGIN = 0.05  # largest loss of edit similarity that counts as keeping it

Quality = Literal["kept", "unclear", "lost", "undefined"]


@dataclass(frozen=True, slots=True)
class Criterion:
    """An order of a ranking, by a comparison with full depth of which more is better."""

    metric: str
    title: str
    needs_quality: bool = True  # only what keeps full depth's quality ranks
    baseline: float = 1.0  # the value of full depth


CRITERIA = (
    Criterion(SPEEDUP.name, "Speed-up of whole requests, quality kept"),
    Criterion(DECODE_SPEEDUP.name, "Speed-up of decoding, quality kept"),
    Criterion(ENERGY_RATIO.name, "Energy saved, quality kept"),
    Criterion(EDIT_SIMILARITY_DIFFERENCE, "Edit similarity against full depth", needs_quality=False, baseline=0.0),
)


def is_baseline(row: SummaryRow) -> bool:
    """Whether a row is the full depth that its run's ratios are counted against: 1 by definition, no interval."""
    return is_reference(row, SPEEDUP)


def is_exact(row: SummaryRow) -> bool:
    """Whether a row's tokens are full depth's: it is full depth, or lossless without a difference, and never cut."""
    return (is_asserted(row) if row.lossless else row.strategy == "full") and not (row.stop or row.prompt_exit)


def _keeps_by_definition(row: SummaryRow) -> bool:
    """Whether a row is the full depth that its scores are compared with, or has its tokens in every completion."""
    return row.baseline_format == row.weights_format and (is_baseline(row) or is_asserted(row))


def quality_of(row: SummaryRow) -> Quality:
    """Say whether a row keeps full depth's quality, loses it, or has too few samples to tell."""
    if row.weights == "random":
        return "undefined"
    if _keeps_by_definition(row):
        return "kept"
    for metric in metrics_of([row]):
        lost = row.estimate(metric) if metric.kind == "score" and metric.verdict is not None else None
        if (
            lost is not None
            and is_distinguishable(metric, lost)
            and lost.value * (1 if metric.better == "lower" else -1) > 0
        ):
            return "lost"
    difference = row.estimate(EDIT_SIMILARITY_DIFFERENCE)
    most = 1.0  # that may be lost on the average, for all that is known
    if difference is not None and difference.interval is not None:
        most = -difference.interval[0]
    elif difference is not None and difference.no_interval is NoInterval.FEW_DIFFERING and difference.samples:
        most = largest_share(difference.differing or 0, difference.samples)
    return "kept" if most <= MARGIN else "unclear"


def ranks(rows: Sequence[SummaryRow], criterion: Criterion) -> list[int | None]:
    """Return the rank of each row of one group; ``None`` for what does not rank by this criterion."""

    def span(row: SummaryRow) -> tuple[float, float] | None:
        unmeasured = criterion.metric == ENERGY_RATIO.name and not row.energy_measured
        if not is_candidate(row) or row.weights == "random" or unmeasured:
            return None
        if criterion.needs_quality and quality_of(row) != "kept":
            return None
        if is_baseline(row) if criterion.needs_quality else _keeps_by_definition(row):
            return criterion.baseline, criterion.baseline
        found = row.estimate(criterion.metric)
        return None if found is None else found.interval

    spans = [span(row) for row in rows]
    lows = sorted(low for low, _ in filter(None, spans))
    return [None if one is None else 1 + len(lows) - bisect_right(lows, one[1]) for one in spans]
