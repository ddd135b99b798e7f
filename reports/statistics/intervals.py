"""The few statistics a benchmark table needs, each with its definition.

Percentiles interpolate linearly between order statistics (Hyndman and Fan 1996, type 7; NumPy's default).
Rates are totals over totals, never means of ratios: a mean of per-sample tokens/s flatters a system
that is fast on short samples. A comparison is a ratio of two such rates over *paired* units, and its 95 %
interval comes from resampling those pairs (Efron 1979) with the expanded percentile method (Hesterberg
2015, "What Teachers Should Know About the Bootstrap", section 6.1.2), which widens the plain percentile
interval where pairs are few. It does not promise exact coverage; below ``MINIMUM_PAIRS`` pairs there is no
interval at all, because resampling so few values would look more certain than it is.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MINIMUM_PAIRS",
    "Pair",
    "bootstrap_interval",
    "draws",
    "mean",
    "mean_interval",
    "median",
    "paired_ratio",
    "percentile",
    "pooled",
    "ratio",
    "replicate_interval",
    "resampled",
]

MINIMUM_PAIRS = 5
RESAMPLES = 4_000
CONFIDENCE = 0.95
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
    """Return the arithmetic mean, ``None`` of nothing."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Return the ``percent``-th percentile (0…100), interpolated linearly; ``None`` of nothing.

    With fewer than ``100 / (100 - percent)`` values a high percentile is little more than the maximum.
    """
    listed = list(values)
    return float(np.percentile(listed, percent, method="linear")) if listed else None


def median(values: Iterable[float]) -> float | None:
    """Return the 50th percentile, ``None`` of nothing."""
    return percentile(values, 50)


def pooled(pairs: Iterable[tuple[Hashable, Pair]]) -> list[Pair]:
    """Add up the pairs that share a key, in order of first appearance.

    Repeats of one prompt (or of one block of prompts) are not independent: pooled, they are resampled
    together and do not make an interval look narrower than the choice of prompts allows.
    """
    totals: dict[Hashable, Pair] = {}
    for key, pair in pairs:
        sofar = totals.get(key, Pair(0.0, 0.0, 0.0, 0.0))
        totals[key] = Pair(
            sofar.baseline + pair.baseline,
            sofar.other + pair.other,
            sofar.baseline_units + pair.baseline_units,
            sofar.other_units + pair.other_units,
        )
    return list(totals.values())


def paired_ratio(pairs: Sequence[Pair]) -> float | None:
    """Return baseline cost per unit over the other's cost per unit, totals over totals.

    Above 1 the other operating point is cheaper. ``None`` without pairs or where a total is 0.
    """
    baseline = ratio(math.fsum(p.baseline for p in pairs), math.fsum(p.baseline_units for p in pairs))
    other = ratio(math.fsum(p.other for p in pairs), math.fsum(p.other_units for p in pairs))
    return baseline / other if baseline is not None and other else None


def bootstrap_interval(
    pairs: Sequence[Pair], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % interval of :func:`paired_ratio`, ``None`` below ``MINIMUM_PAIRS`` pairs.

    Args:
        pairs: independent units; pool repeats first (:func:`pooled`).
        resamples: bootstrap replications.
        seed: decides the resampling, so that reports are reproducible.
    """
    n = len(pairs)
    if n < MINIMUM_PAIRS:
        return None
    table = np.array([[p.baseline, p.other, p.baseline_units, p.other_units] for p in pairs])
    sums = np.vstack([counts @ table for counts in resampled(n, resamples, seed)])  # [resamples, 4]
    baseline, other, baseline_units, other_units = sums.T
    below = other * baseline_units
    if not np.all(below > 0):
        return None
    return replicate_interval(baseline * other_units / below, n)


def mean_interval(values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of independent values, ``None`` below ``MINIMUM_PAIRS`` of them.

    Arguments as :func:`bootstrap_interval`.
    """
    n = len(values)
    if n < MINIMUM_PAIRS:
        return None
    table = np.asarray(values, dtype=float)
    means = np.concatenate([counts @ table for counts in resampled(n, resamples, seed)]) / n
    return replicate_interval(means, n)


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
    normal = NormalDist()
    t = _student_quantile(normal.inv_cdf((1 + CONFIDENCE) / 2), n - 1)
    return normal.cdf(-math.sqrt(n / (n - 1)) * t)


def _student_quantile(z: float, degrees: int) -> float:
    """Student's t quantile from the normal one (Abramowitz and Stegun 26.7.5); 3 decimals from 4 degrees on."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))
