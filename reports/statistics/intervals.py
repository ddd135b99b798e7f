"""The few statistics a benchmark table needs, each with its definition.

Percentiles interpolate linearly between order statistics (Hyndman and Fan 1996, type 7; NumPy's default).
Rates are totals over totals, never means of ratios: a mean of per-sample tokens/s flatters a system
that is fast on short samples. A comparison is a ratio of two such rates, or a mean difference, over *paired* units.

**Intervals of comparisons** are t intervals of the linearised statistic: the variance comes from the influence of each
unit on it, the degrees of freedom from how unequal the units are, by the effective number of Kish (1965). For ratios
of totals they cover 93.8 to 95.4 % where block noise is near normal, 93.6 to 98.4 % where it has heavy tails or spikes
(``tests/reports/statistics/noise.py``); the percentile bootstrap, which stood here before, covered 91 to 95 %.

**Shares** have Clopper and Pearson's interval for an effective number of trials (:func:`share_bounds`): near 0 and 1,
where a t interval leaves 0…1 and a bootstrap of few documents covers 71 to 92 %, it covers 93 to 98 %. **Medians** have
percentile intervals of the bootstrap (Efron 1979), expanded for few units (Hesterberg 2015, "What Teachers Should Know
About the Bootstrap", section 6.1.2).

Where an interval would not cover what it claims there is none, and :class:`NoInterval` says why. NaN and infinities are
no numbers: a statistic of units that hold one is ``None``, and an interval of them undefined.
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
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

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
_KEPT = 10_000_000  # resampled counts that are kept for the next interval of as many units: 20 MB


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
    """Return the ``percent``-th percentile (0…100), interpolated linearly; ``None`` as of :func:`mean`.

    With fewer than ``100 / (100 - percent)`` values a high percentile is little more than the maximum.
    """
    listed = list(values)
    usable = listed and all(map(math.isfinite, listed))
    return float(np.percentile(listed, percent, method="linear")) if usable else None


def median(values: Iterable[float]) -> float | None:
    """Return the 50th percentile, ``None`` of nothing."""
    return percentile(values, 50)


def pooled(pairs: Iterable[tuple[Hashable, Pair]]) -> list[Pair]:
    """Add up the pairs that share a key, in order of first appearance.

    Repeats of one prompt (or of one block of prompts) are not independent: pooled, they are resampled
    together and do not make an interval look narrower than the choice of prompts allows.
    """
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
    rows = list(map(_row, pairs))
    if not rows or not np.isfinite(rows).all():
        return None
    totals = [math.fsum(column) for column in zip(*rows, strict=True)]
    if totals[0] < 0 or min(totals[1:]) <= 0:
        return None
    baseline, other, baseline_units, other_units = totals
    return (baseline / baseline_units) / (other / other_units)


def ratio_interval(pairs: Sequence[Pair]) -> Interval | NoInterval:
    """Return the 95 % interval of :func:`paired_ratio`: a t interval of its logarithm.

    Args:
        pairs: independent units; pool repeats, and samples that share a window, first (:func:`pooled`).

    Returns:
        A reason below ``MINIMUM_PAIRS`` pairs, and where a quantity is negative or not finite or a total 0.
    """
    if len(pairs) < MINIMUM_PAIRS:
        return NoInterval.FEW_PAIRS
    found = paired_ratio(pairs)
    table = np.array([_row(pair) for pair in pairs])
    if not found or np.any(table < 0):
        return NoInterval.UNDEFINED
    baseline, other, baseline_units, other_units = (table / table.sum(0)).T  # shares of the totals
    factor = math.exp(half_width((baseline - other - baseline_units + other_units, (baseline + other) / 2)))
    return found / factor, found * factor


def mean_interval(units: Sequence[Sequence[float]], moved: Sequence[float] = ()) -> Interval | NoInterval:
    """Return the 95 % t interval of the mean of values.

    Args:
        units: the values of each independent unit, none empty.
        moved: how much each unit moves the mean through what the values were made with and is estimated, too, such as
            the weight of a mixture; sums to 0. Empty where there is none.

    Returns:
        A reason below ``MINIMUM_PAIRS`` units, and where a value is not finite.
    """
    if len(units) < MINIMUM_PAIRS:
        return NoInterval.FEW_PAIRS
    if not all(map(math.isfinite, chain(*units))):
        return NoInterval.UNDEFINED
    sums, counts = (np.array([size(values) for values in units], dtype=float) for size in (math.fsum, len))
    total = counts.sum()
    centre = float(sums.sum() / total)
    influence = (sums - centre * counts) / total
    half = half_width((influence + np.asarray(moved) if len(moved) else influence, counts / total))
    return centre - half, centre + half


def score_interval(units: Sequence[Sequence[float]], moved: Sequence[float] = ()) -> Interval | NoInterval:
    """Return the 95 % interval of a mean difference of scores, where enough samples can tell it.

    Args:
        units: the differences of the samples of each independent unit, none empty.
        moved: as for :func:`mean_interval`.
    """
    differences = [difference for unit in units for difference in unit]
    if len(differences) < MINIMUM_SAMPLES:
        return NoInterval.FEW_SAMPLES
    if np.count_nonzero(differences) < MINIMUM_DIFFERING:
        return NoInterval.FEW_DIFFERING
    return mean_interval(units, moved)


def half_width(*samples: tuple[Floats, Floats]) -> float:
    """Return half the width of the 95 % t interval of a linearised statistic.

    One sample of n units has variance n / (n − 1) · Σ influence² and max(1 / Σ share² − 1, 1) degrees of freedom (Kish
    1965, "Survey Sampling"). Variances of independent samples add up, with the degrees of freedom of Welch and
    Satterthwaite.

    Args:
        samples: for each, every unit's influence on the statistic and its share of the sample, ``[units]``; influences
            sum to 0 and shares to 1.
    """
    variances, spread = [], 0.0
    for influence, share in samples:
        n = len(influence)
        variances.append(n / (n - 1) * float(influence @ influence))
        spread += variances[-1] ** 2 / max(1 / float(share @ share) - 1, 1.0)
    variance = math.fsum(variances)
    return float(stdtrit(variance**2 / spread, (1 + CONFIDENCE) / 2)) * math.sqrt(variance) if spread else 0.0


def share_bounds(pairs: Sequence[Pair]) -> Interval | NoInterval:
    """Return the 95 % interval of Σ baseline / Σ other, a part over its whole.

    That of Clopper and Pearson for the number of trials that would vary as the units do (Korn and Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts estimated from cluster survey
    data"), Student's t for the number of units included.

    Args:
        pairs: independent units.

    Returns:
        A reason where fewer than ``MINIMUM_PAIRS`` units have a whole, where the share is alike in all units (0 and 1
        among them), and where a number is not finite.
    """
    table = np.array([[pair.baseline, pair.other] for pair in pairs if pair.other != 0])
    if len(table) < MINIMUM_PAIRS or not np.isfinite(table).all():
        return NoInterval.FEW_PAIRS if len(table) < MINIMUM_PAIRS else NoInterval.UNDEFINED
    (parts, wholes), total = table.T, table[:, 1].sum()
    share = float(parts.sum() / total)
    half = half_width(((parts - share * wholes) / total, wholes / total))
    if not 0 < share < 1 or half < _ALIKE:
        return NoInterval.FEW_DIFFERING
    trials = share * (1 - share) * float(ndtri((1 + CONFIDENCE) / 2) / half) ** 2
    return 1 - largest_share((1 - share) * trials, trials), largest_share(share * trials, trials)


def share_interval(pairs: Sequence[Pair]) -> Interval | NoInterval:
    """Return the interval of a share of tokens, Σ baseline of Σ other, as :func:`share_bounds` does.

    Args:
        pairs: independent units, those without any such token included.

    Returns:
        A reason where fewer than ``MINIMUM_PAIRS`` units have such tokens, or fewer than ``MINIMUM_DIFFERING`` tokens
        are on one side.
    """
    parts, wholes = (math.fsum(column) for column in zip(*((one.baseline, one.other) for one in pairs), strict=True))
    if min(parts, wholes - parts) < MINIMUM_DIFFERING:
        return NoInterval.FEW_DIFFERING
    return share_bounds(pairs)


def known(interval: Interval | NoInterval) -> Interval | None:
    """Return an interval, ``None`` instead of the reason why there is none."""
    return interval if isinstance(interval, tuple) else None


def largest_share(count: float, of: float) -> float:
    """Return the upper end of the 95 % interval of a share, ``count`` of ``of`` (Clopper and Pearson 1934)."""
    return float(betaincinv(count + 1, of - count, (1 + CONFIDENCE) / 2)) if count < of else 1.0


def replicate_interval(replicates: NDArray[np.float64], n: int) -> tuple[float, float] | None:
    """Return the 95 % interval that bootstrap replicates of a statistic span.

    Args:
        replicates: the statistic of each resampling.
        n: independent units that were resampled; ``None`` comes back below ``MINIMUM_PAIRS`` of them.
    """
    if n < MINIMUM_PAIRS or not np.all(np.isfinite(replicates)):
        return None
    tail = 100 * _expanded_tail(n)
    low, high = np.percentile(replicates, [tail, 100 - tail])
    return float(low), float(high)


def estimate_of(values: NDArray[np.float64], n: int) -> Estimate:
    """Return a statistic with the interval that its bootstrap replicates span.

    Args:
        values: of the sample itself, then of each resampling; without resamplings there is no interval.
        n: independent units that were resampled.
    """
    return Estimate.of(float(values[0]), replicate_interval(values[1:], n) if len(values) > 1 else None)


def draws(n: int, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Return how often each of ``n`` units is drawn, ``[resamples, n]``, for statistics that go together.

    What is computed of the same draws is paired: the difference of two statistics has its own interval then.
    """
    return np.concatenate(list(resampled(n, resamples, seed)))


def resampled(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each of ``n`` units was drawn, a row per resample, some rows at a time.

    The same draws whenever ``n``, ``resamples`` and ``seed`` are the same.
    """
    step = max(1, _CHUNK // n)
    if n * resamples <= _KEPT:
        kept = _kept_counts(n, resamples, seed)
        for start in range(0, resamples, step):
            yield kept[start : start + step].astype(float)
        return
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, step):
        yield _counts(generator, n, min(step, resamples - start)).astype(float)


@lru_cache(maxsize=4)
def _kept_counts(n: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    return _counts(np.random.default_rng(seed), n, resamples).astype(np.uint16)


def _counts(generator: np.random.Generator, n: int, resamples: int) -> NDArray[np.int64]:
    drawn = generator.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n)


def _expanded_tail(n: int) -> float:
    """Tail probability that makes a percentile interval of ``n`` values as wide as Student's interval."""
    return float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + CONFIDENCE) / 2)))


def _row(pair: Pair) -> tuple[float, float, float, float]:
    return pair.baseline, pair.other, pair.baseline_units, pair.other_units
