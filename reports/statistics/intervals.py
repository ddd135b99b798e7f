"""The few statistics a benchmark table needs; where an interval would not cover there is none.

Rates are totals over totals, never means of ratios: a mean of per-sample tokens/s flatters a system that is fast on
short samples. Percentiles interpolate linearly (Hyndman and Fan 1996, type 7). Intervals of ratios and differences are
t intervals of the linearised statistic over independent units, with Kish's (1965) effective number of them; shares have
Clopper and Pearson's for an effective number of trials, which percentiles have of the share below them (Woodruff 1952);
changes of percentiles the bootstrap's (Efron 1979), expanded for few units (Hesterberg 2015, "What Teachers Should Know
About the Bootstrap", section 6.1.2).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.records.estimate import Estimate, Interval, NoInterval

Floats = NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)

MINIMUM_PAIRS = 5
"""Independent units below which there is no interval at all: so few would look more certain than they are."""

MINIMUM_SAMPLES, MINIMUM_DIFFERING = 50, 8
"""Samples, and samples that differ, below which a difference of scores has no interval.

Most samples score the same under both operating points: with 85 % zeros, a t interval covers 69 % at 8 samples, 81 %
at 16 and 92 % at 50."""

RESAMPLES = 4_000
CONFIDENCE = 0.95
_ALIKE = 1e-9  # half a share's interval that is rounding
_CHUNK = 2_000_000  # resampled counts in use at once: 16 MB


@dataclass(frozen=True, slots=True)
class Pair:
    """The same work under the baseline and under another operating point.

    Attributes:
        baseline: cost under the baseline (seconds, joules or bytes).
        other: cost under the other operating point, same unit.
        baseline_units: what the baseline's cost bought, for example tokens; 1 when only the costs count.
        other_units: the same for the other operating point.
    """

    baseline: float
    other: float
    baseline_units: float = 1.0
    other_units: float = 1.0


def ratio(numerator: float, denominator: float) -> float | None:
    """Return ``numerator / denominator``, ``None`` when the denominator is 0."""
    return numerator / denominator if denominator else None


def mean(values: Iterable[float]) -> float | None:
    """Return the arithmetic mean, ``None`` of nothing and where a value is not finite."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed and all(map(math.isfinite, listed)) else None


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Return the ``percent``-th percentile (0…100), interpolated linearly; ``None`` as of :func:`mean`."""
    listed = list(values)
    usable = listed and all(map(math.isfinite, listed))
    return float(np.percentile(listed, percent, method="linear")) if usable else None


def median(values: Iterable[float]) -> float | None:
    """Return the 50th percentile, ``None`` of nothing."""
    return percentile(values, 50)


def pooled(pairs: Iterable[tuple[Hashable, Pair]]) -> list[Pair]:
    """Add up the pairs that share a key: repeats of a prompt, or prompts of a block, are not independent."""
    return list(pooled_by(pairs).values())


def pooled_by(pairs: Iterable[tuple[Key, Pair]]) -> dict[Key, Pair]:
    """Add up the pairs that share a key, as :func:`pooled` does, and return them by it."""
    totals: dict[Key, Pair] = {}
    for key, pair in pairs:
        sofar = totals.get(key, Pair(0.0, 0.0, 0.0, 0.0))
        totals[key] = Pair(
            sofar.baseline + pair.baseline,
            sofar.other + pair.other,
            sofar.baseline_units + pair.baseline_units,
            sofar.other_units + pair.other_units,
        )
    return totals


def paired_ratio(pairs: Sequence[Pair]) -> float | None:
    """Return baseline cost per unit over the other's cost per unit, totals over totals.

    Above 1 the other operating point is cheaper. ``None`` without pairs, where a total is negative, where one that is
    divided by is 0, and where a number is not finite.
    """
    table = table_of(pairs)
    if not len(table) or not np.isfinite(table).all():
        return None
    totals = [math.fsum(column) for column in table.T]
    if totals[0] < 0 or min(totals[1:]) <= 0:
        return None
    baseline, other, baseline_units, other_units = totals
    return (baseline / baseline_units) / (other / other_units)


def ratio_interval(pairs: Sequence[Pair]) -> Interval | NoInterval:
    """Return the 95 % interval of :func:`paired_ratio`: a t interval of its logarithm."""
    if len(pairs) < MINIMUM_PAIRS:
        return NoInterval.FEW_PAIRS
    found = paired_ratio(pairs)
    table = table_of(pairs)
    if not found or np.any(table < 0):
        return NoInterval.UNDEFINED
    baseline, other, baseline_units, other_units = (table / table.sum(0)).T  # shares of the totals
    factor = math.exp(half_width(baseline - other - baseline_units + other_units, (baseline + other) / 2))
    return found / factor, found * factor


def mean_interval(units: Sequence[Sequence[float]], moved: Sequence[float] = ()) -> Interval | NoInterval:
    """Return the 95 % t interval of the mean of the values of independent units.

    ``moved`` is how much each unit moves the mean through an estimate that the values were made with; it sums to 0.
    """
    if len(units) < MINIMUM_PAIRS:
        return NoInterval.FEW_PAIRS
    if not all(map(math.isfinite, chain(*units))):
        return NoInterval.UNDEFINED
    sums, counts = (np.array([size(values) for values in units], dtype=float) for size in (math.fsum, len))
    total = counts.sum()
    centre = float(sums.sum() / total)
    influence = (sums - centre * counts) / total
    half = half_width(influence + np.asarray(moved) if len(moved) else influence, counts / total)
    return centre - half, centre + half


def score_interval(units: Sequence[Sequence[float]], moved: Sequence[float] = ()) -> Interval | NoInterval:
    """Return the 95 % interval of a mean difference of scores, where enough samples can tell it."""
    differences = [difference for unit in units for difference in unit]
    if len(differences) < MINIMUM_SAMPLES:
        return NoInterval.FEW_SAMPLES
    if np.count_nonzero(differences) < MINIMUM_DIFFERING:
        return NoInterval.FEW_DIFFERING
    return mean_interval(units, moved)


def half_width(influence: Floats, share: Floats) -> float:
    """Return half the width of the 95 % t interval of a linearised statistic.

    Of n units, the variance is n / (n − 1) · Σ influence² and the degrees of freedom max(1 / Σ share² − 1, 1) (Kish
    1965, "Survey Sampling"); influences on the statistic sum to 0, shares of the sample to 1.
    """
    n = len(influence)
    variance, freedom = n / (n - 1) * float(influence @ influence), max(1 / float(share @ share) - 1, 1.0)
    from scipy.special import stdtrit  # late, as everywhere here: a third of a second

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)


def share_bounds(pairs: Sequence[Pair]) -> Interval | NoInterval:
    """Return the 95 % interval of Σ baseline / Σ other, a part over its whole.

    That of Clopper and Pearson for the number of trials that would vary as the units do (Korn and Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts estimated from cluster survey
    data"), Student's t for the number of units included.
    """
    table = np.array([[pair.baseline, pair.other] for pair in pairs if pair.other != 0])
    if len(table) < MINIMUM_PAIRS or not np.isfinite(table).all():
        return NoInterval.FEW_PAIRS if len(table) < MINIMUM_PAIRS else NoInterval.UNDEFINED
    (parts, wholes), total = table.T, table[:, 1].sum()
    share = float(parts.sum() / total)
    half = half_width((parts - share * wholes) / total, wholes / total)
    if not 0 < share < 1 or half < _ALIKE:
        return NoInterval.FEW_DIFFERING
    from scipy.special import ndtri

    trials = share * (1 - share) * float(ndtri((1 + CONFIDENCE) / 2) / half) ** 2
    return 1 - largest_share((1 - share) * trials, trials), largest_share(share * trials, trials)


def share_interval(pairs: Sequence[Pair]) -> Interval | NoInterval:
    """Return :func:`share_bounds` where at least ``MINIMUM_DIFFERING`` tokens are on each side."""
    parts, wholes = (math.fsum(column) for column in zip(*((one.baseline, one.other) for one in pairs), strict=True))
    if min(parts, wholes - parts) < MINIMUM_DIFFERING:
        return NoInterval.FEW_DIFFERING
    return share_bounds(pairs)


def percentile_interval(units: Sequence[Sequence[float]], percent: float) -> Interval | NoInterval:
    """Return the 95 % interval of :func:`percentile` of the values of independent units.

    Its ends are the percentiles at the ends of :func:`share_bounds` of the share of values up to it (Woodruff 1952,
    "Confidence intervals for medians and other position measures"); it covers more than a bootstrap of units. There is
    none where an end would be the smallest or the largest value.
    """
    values = sorted(chain(*units))
    found = percentile(values, percent)
    if found is None:
        return NoInterval.UNDEFINED
    below = [Pair(sum(value <= found for value in unit), len(unit)) for unit in units]
    bounds = share_bounds(below)
    if not isinstance(bounds, tuple):
        return bounds
    share = sum(pair.baseline for pair in below) / len(values)
    low, high = (percent / 100 + bound - share for bound in bounds)
    beyond = 1 / (len(values) - 1)
    if low < beyond or high > 1 - beyond:
        return NoInterval.FEW_SAMPLES
    one, other = np.quantile(values, (low, high))
    return float(one), float(other)


def known(interval: Interval | NoInterval) -> Interval | None:
    """Return an interval, ``None`` instead of the reason why there is none."""
    return interval if isinstance(interval, tuple) else None


def largest_share(count: float, of: float) -> float:
    """Return the upper end of the 95 % interval of a share, ``count`` of ``of`` (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    return float(betaincinv(count + 1, of - count, (1 + CONFIDENCE) / 2)) if count < of else 1.0


def replicate_interval(replicates: NDArray[np.float64], n: int) -> tuple[float, float] | None:
    """Return the 95 % interval that bootstrap replicates of a statistic span."""
    if n < MINIMUM_PAIRS or not np.all(np.isfinite(replicates)):
        return None
    tail = 100 * _expanded_tail(n)
    low, high = np.percentile(replicates, [tail, 100 - tail])
    return float(low), float(high)


def estimate_of(values: NDArray[np.float64], n: int) -> Estimate:
    """Return a statistic with the interval that its bootstrap replicates span."""
    return Estimate.of(float(values[0]), replicate_interval(values[1:], n) if len(values) > 1 else None)


def draws(n: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return how often each of ``n`` units is drawn, ``[resamples, n]``: statistics of the same draws are paired."""
    return np.concatenate(list(resampled(n, resamples, seed)))


def resampled(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each of ``n`` units was drawn, a row per resample, some rows at a time."""
    counts, step = _counts(n, resamples, seed), max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        yield counts[start : start + step].astype(float)


@lru_cache(maxsize=4)
def _counts(n: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.uint16)


def _expanded_tail(n: int) -> float:
    """Tail probability that makes a percentile interval of ``n`` values as wide as Student's interval."""
    from scipy.special import ndtr, stdtrit

    return float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + CONFIDENCE) / 2)))


def table_of(pairs: Sequence[Pair]) -> Floats:
    """Return a row of four numbers per pair."""
    return np.array([(one.baseline, one.other, one.baseline_units, one.other_units) for one in pairs], dtype=float)
