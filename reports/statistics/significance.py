"""Is a paired difference more than chance? Permutation tests and Holm's correction.

Both tests ask the same question of paired units (requests, blocks of them): if the baseline and the other operating
point were interchangeable, how often would a difference at least as large as the observed one arise (two-sided)?
Under that hypothesis the two sides of every pair may be swapped, and nothing is assumed about distributions (Fisher
1935; Pitman 1937). With at most ``EXACT_PAIRS`` pairs all swaps are counted and the p-value is exact. Beyond, it
is estimated from ``SWAPS`` random ones, seeded, as (1 + as extreme) / (1 + drawn), which never reaches 0 and keeps
the test valid (Phipson and Smyth 2010).

What is swapped are whole pairs, and the statistic is the very ratio, or mean, that the table shows. So n pairs cannot
give less than 2 / 2ⁿ, and a test can find nothing where :func:`smallest_p` is above the level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from reports.statistics.intervals import MINIMUM_PAIRS, Pair

__all__ = ["EXACT_PAIRS", "LEVEL", "holm", "ratio_p", "sign_flip_p", "smallest_p"]

Floats: TypeAlias = NDArray[np.float64]

LEVEL = 0.05
EXACT_PAIRS = 14
SWAPS = 9_999
_ROUNDING = 1e-9  # two ways of adding up one difference may differ by this share of it
_KEPT = 20_000_000  # random swaps that are kept for the next test: 20 MB
_CHUNK = 2_000_000  # swaps in use at once: 16 MB


def ratio_p(pairs: Sequence[Pair], *, seed: int = 0) -> float | None:
    """Return the p-value of "the paired ratio is 1" (:func:`reports.statistics.intervals.paired_ratio`).

    The statistic is the absolute logarithm of the ratio of totals. ``None`` below ``MINIMUM_PAIRS`` pairs, or where
    a cost or its units are not positive.

    Args:
        pairs: independent units; pool repeats first (:func:`reports.statistics.intervals.pooled`).
        seed: decides the random swaps.
    """
    if len(pairs) < MINIMUM_PAIRS:
        return None
    table = np.array([[p.baseline, p.other, p.baseline_units, p.other_units] for p in pairs])
    if not np.all(table > 0):
        return None
    baseline, other, baseline_units, other_units = table.T
    moved = np.stack([other - baseline, other_units - baseline_units], axis=1)
    observed = _log_ratio(baseline.sum(), other.sum(), baseline_units.sum(), other_units.sum())
    scale = abs(observed) + 1
    extreme = drawn = 0
    for swaps in _swaps(len(pairs), seed):
        cost, units = (swaps @ moved).T
        drawn += len(swaps)
        ratios = _log_ratio(
            baseline.sum() + cost, other.sum() - cost, baseline_units.sum() + units, other_units.sum() - units
        )
        extreme += int(np.count_nonzero(np.abs(ratios) >= abs(observed) - _ROUNDING * scale))
    return _p(extreme, drawn, len(pairs))


def sign_flip_p(differences: Sequence[float], *, seed: int = 0) -> float | None:
    """Return the p-value of "the mean of the paired differences is 0"; ``None`` below ``MINIMUM_PAIRS`` of them.

    Arguments as :func:`ratio_p`. Differences of 0 carry no evidence either way and make no p-value smaller.
    """
    if len(differences) < MINIMUM_PAIRS:
        return None
    values = np.asarray(differences, dtype=float)
    total = values.sum()
    scale = np.abs(values).sum()
    extreme = drawn = 0
    for swaps in _swaps(len(values), seed):
        sums = total - 2 * (swaps @ values)
        drawn += len(swaps)
        extreme += int(np.count_nonzero(np.abs(sums) >= abs(total) - _ROUNDING * scale))
    return _p(extreme, drawn, len(values))


def smallest_p(pairs: int) -> float:
    """Return the p-value of so many pairs that all point the same way: nothing smaller can come out."""
    return 2.0 ** (1 - pairs) if pairs <= EXACT_PAIRS else 1 / (1 + SWAPS)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values of a family of tests corrected so that any false alarm at all stays below the level.

    Step-down (Holm 1979): the smallest is multiplied by the number of tests, the next by one less, and so on, never
    below the one before and never above 1. ``None`` (not tested) stays ``None`` and does not count.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[index] = largest
    return corrected


def _log_ratio(baseline: Floats, other: Floats, baseline_units: Floats, other_units: Floats) -> Floats:
    result: Floats = np.log(baseline) - np.log(other) - np.log(baseline_units) + np.log(other_units)
    return result


def _p(extreme: int, drawn: int, pairs: int) -> float:
    return extreme / drawn if pairs <= EXACT_PAIRS else (1 + extreme) / (1 + drawn)


def _swaps(n: int, seed: int) -> Iterator[Floats]:
    """Yield rows of 0 and 1, one a pair: all of them up to swapping everything, or random ones."""
    if n <= EXACT_PAIRS:
        yield _every_swap(n)
        return
    step = max(1, _CHUNK // n)
    if n * SWAPS <= _KEPT:
        kept = _random_swaps(n, seed)
        for start in range(0, SWAPS, step):
            yield kept[start : start + step].astype(float)
        return
    generator = np.random.default_rng(seed)
    for start in range(0, SWAPS, step):
        yield generator.integers(0, 2, (min(step, SWAPS - start), n), dtype=np.uint8).astype(float)


@lru_cache(maxsize=EXACT_PAIRS)
def _every_swap(n: int) -> Floats:
    numbers = np.arange(2 ** (n - 1))[:, None]
    return ((numbers >> np.arange(n)) & 1).astype(float)  # the last pair is never swapped: the statistic is two-sided


@lru_cache(maxsize=2)
def _random_swaps(n: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 2, (SWAPS, n), dtype=np.uint8)
