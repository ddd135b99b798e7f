"""Ranks inside one group, and why something does not rank.

**Who may rank.** By a cost (speed-up, energy) only what *keeps* full depth's quality: edit similarity, exact match and
CodeBLEU are not distinguishably lower (Holm-corrected paired test), **and** the 95 % interval of the difference in
edit similarity stays above −0.05. Without the second condition a run of few samples would always pass, since it can
distinguish nothing. Where too few samples differ for an interval, the most of them that may differ (Clopper and
Pearson) must stay below 5 %: none loses more than 1, so that 72 samples are needed where nothing is lost. A lossless
operating point whose tokens are full depth's in every completion keeps its quality by definition, however few there
are.

**Ranks.** One plus the number of rows that are clearly better, that is, whose interval lies wholly above this row's.
Rows that the intervals do not tell apart share a rank. Full depth ranks like any other, at 1 exactly.

The oracle is a bound and never ranks; random weights never rank; energy ranks only where a sensor measured it. Runs
that ``harness submit`` would refuse do not come here at all (:mod:`reports.leaderboard.checks`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.contracts import Metric
from harness.records.estimate import Estimate, NoInterval
from harness.records.summary import SummaryRow
from reports.metrics.evaluation import is_distinguishable
from reports.metrics.speedups import DECODE_SPEEDUP, ENERGY_RATIO, SPEEDUP
from reports.metrics.vocabulary import EDIT_SIMILARITY_DIFFERENCE, metrics_of
from reports.statistics.intervals import largest_share
from reports.tables.result import is_asserted, is_candidate, is_reference

MARGIN = 0.05
"""Largest loss of edit similarity that counts as keeping it."""

Quality = Literal["kept", "unclear", "lost", "undefined"]


@dataclass(frozen=True, slots=True)
class Criterion:
    """An order of a ranking."""

    metric: str
    title: str
    needs_quality: bool
    baseline: float


CRITERIA = (
    Criterion(SPEEDUP.name, "Speed-up of whole requests, quality kept", needs_quality=True, baseline=1.0),
    Criterion(DECODE_SPEEDUP.name, "Speed-up of decoding, quality kept", needs_quality=True, baseline=1.0),
    Criterion(ENERGY_RATIO.name, "Energy saved, quality kept", needs_quality=True, baseline=1.0),
    Criterion(EDIT_SIMILARITY_DIFFERENCE, "Edit similarity against full depth", needs_quality=False, baseline=0.0),
)


def is_baseline(row: SummaryRow) -> bool:
    """Whether a row is the full depth that its run's ratios are counted against: 1 by definition, no interval."""
    return is_reference(row, SPEEDUP)


def is_exact(row: SummaryRow) -> bool:
    """Whether a row's tokens are full depth's: it is full depth, or lossless without a difference, and never cut."""
    return (is_asserted(row) if row.lossless else row.strategy == "full") and not row.stop


def _keeps_by_definition(row: SummaryRow) -> bool:
    """Whether a row is the full depth that its scores are compared with, or has its tokens in every completion."""
    return row.baseline_format == row.weights_format and (is_baseline(row) or is_asserted(row))


def quality_of(row: SummaryRow) -> Quality:
    """Say whether a row keeps full depth's quality, loses it, or has too few samples to tell."""
    if row.weights == "random":
        return "undefined"
    if _keeps_by_definition(row):
        return "kept"
    if any(_lost(metric, row.estimate(metric)) for metric in metrics_of([row]) if metric.kind == "score"):
        return "lost"
    difference = row.estimate(EDIT_SIMILARITY_DIFFERENCE)
    return "kept" if difference is not None and _largest_loss(difference) <= MARGIN else "unclear"


def ranks(rows: Sequence[SummaryRow], criterion: Criterion) -> list[int | None]:
    """Return the rank of each row of one group; ``None`` for what does not rank by this criterion."""
    spans = [_interval(row, criterion) if _may_rank(row, criterion) else None for row in rows]
    lows = sorted(span[0] for span in spans if span is not None)
    return [None if span is None else 1 + len(lows) - bisect_right(lows, span[1]) for span in spans]


def _may_rank(row: SummaryRow, criterion: Criterion) -> bool:
    if not is_candidate(row) or row.weights == "random":
        return False
    if criterion.metric == ENERGY_RATIO.name and not row.energy_measured:
        return False
    return not criterion.needs_quality or quality_of(row) == "kept"


def _interval(row: SummaryRow, criterion: Criterion) -> tuple[float, float] | None:
    if is_baseline(row) if criterion.needs_quality else _keeps_by_definition(row):
        return criterion.baseline, criterion.baseline
    found = row.estimate(criterion.metric)
    return None if found is None else found.interval


def _largest_loss(difference: Estimate) -> float:
    """How much may be lost on the average, for all that is known; 1 where nothing is."""
    if difference.interval is not None:
        return -difference.interval[0]
    if difference.no_interval is NoInterval.FEW_DIFFERING and difference.samples and difference.differing is not None:
        return largest_share(difference.differing, difference.samples)
    return 1.0


def _lost(metric: Metric, difference: Estimate | None) -> bool:
    """Whether a score that decides about quality is distinguishably worse than full depth's."""
    if metric.verdict is None or difference is None or not is_distinguishable(metric, difference):
        return False
    return difference.value > 0 if metric.better == "lower" else difference.value < 0
