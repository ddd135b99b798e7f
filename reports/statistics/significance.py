"""Is a paired difference more than chance? Permutation tests and Holm's correction.

If the baseline and the other operating point were interchangeable, how often would a difference at least as large as
the observed one arise (two-sided)? Under that hypothesis the two sides of every pair may be swapped, and nothing is
assumed about distributions (Fisher 1935; Pitman 1937). With at most ``EXACT_PAIRS`` pairs all swaps are counted and the
p-value is exact. Beyond, it is estimated from ``SWAPS`` random ones, seeded, as (1 + as extreme) / (1 + drawn), which
never reaches 0 and keeps the test valid (Phipson and Smyth 2010). The statistic is the very ratio, or mean, that the
table shows. What is not finite is not tested: ``None``; a swap that has no finite statistic counts as extreme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from reports.statistics.intervals import MINIMUM_PAIRS, Pair, table_of

Floats: TypeAlias = NDArray[np.float64]

LEVEL = 0.05
EXACT_PAIRS = 14
SWAPS = 9_999
_ROUNDING = 1e-9  # two ways of adding up one difference may differ by this share of it
_CHUNK = 2_000_000  # swaps in use at once: 16 MB


def ratio_p(pairs: Sequence[Pair], *, seed: int = 0) -> float | None:
    """Return the p-value of "the paired ratio is 1" (:func:`reports.statistics.intervals.paired_ratio`).

    The statistic is the absolute logarithm of the ratio of totals. ``None`` below ``MINIMUM_PAIRS`` pairs, where a cost
    or its units are negative or not finite, or where swaps could make a total 0.
    """
    table = table_of(pairs)
    if len(pairs) < MINIMUM_PAIRS or not np.isfinite(table).all() or np.any(table < 0):
        return None
    if not np.all(np.minimum(table[:, ::2], table[:, 1::2]).sum(0) > 0):
        return None
    totals, moved = table.sum(0), table[:, [1, 0, 3, 2]] - table
    signs = np.array([1.0, -1.0, -1.0, 1.0])
    observed = abs(float(np.log(totals) @ signs))

    def size(swaps: Floats) -> Floats:
        logs: Floats = np.log(totals + swaps @ moved) @ signs
        return np.abs(logs)

    return swap_p(size, observed - _ROUNDING * (observed + 1), len(pairs), seed=seed)


def sign_flip_p(differences: Sequence[float], *, seed: int = 0) -> float | None:
    """Return the p-value of "the mean of the paired differences is 0"; those of 0 make no p-value smaller.

    ``None`` below ``MINIMUM_PAIRS`` of them, and where one is not finite.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < MINIMUM_PAIRS or not np.isfinite(values).all():
        return None
    total = values.sum()
    at_least = abs(total) - _ROUNDING * float(np.abs(values).sum())
    return swap_p(lambda swaps: np.abs(total - 2 * (swaps @ values)), at_least, len(values), seed=seed)


def swap_p(size: Callable[[Floats], Floats], at_least: float, pairs: int, *, seed: int = 0) -> float | None:
    """Return the p-value of any statistic of pairs: how often swapping whole pairs makes it as large as observed.

    Args:
        size: makes the statistic's absolute values, ``[rearrangements]``, of rows ``[rearrangements, pairs]``, 1 where
            a pair is swapped. It must be two-sided: the same when every pair is swapped.
        at_least: the observed one, less what rounding may take.
        pairs: how many.
        seed: decides the random swaps.
    """
    if not math.isfinite(at_least):
        return None
    swaps, step, extreme = _swaps(pairs, seed), max(1, _CHUNK // pairs), 0
    with np.errstate(invalid="ignore"):
        for start in range(0, len(swaps), step):
            rows = swaps[start : start + step].astype(float)
            extreme += len(rows) - int(np.count_nonzero(size(rows) < at_least))
    return extreme / len(swaps) if pairs <= EXACT_PAIRS else (1 + extreme) / (1 + SWAPS)


@lru_cache(maxsize=4)
def _swaps(n: int, seed: int) -> NDArray[np.uint8]:
    """Rows of 0 and 1, one a pair: all of them but for their mirror images, or random ones."""
    if n > EXACT_PAIRS:
        return np.random.default_rng(seed).integers(0, 2, (SWAPS, n), dtype=np.uint8)
    return (np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1).astype(np.uint8)


def smallest_p(pairs: int) -> float:
    """Return the p-value of so many pairs that all point the same way: nothing smaller can come out."""
    return 2.0 ** (1 - pairs) if pairs <= EXACT_PAIRS else 1 / (1 + SWAPS)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values of a family of tests corrected so that any false alarm at all stays below the level.

    Step-down (Holm 1979): the smallest is multiplied by the number of tests, the next by one less, and so on, never
    below the one before and never above 1. ``None`` (not tested) stays ``None`` and does not count; nor does NaN.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None and math.isfinite(p))
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[index] = largest
    return corrected
