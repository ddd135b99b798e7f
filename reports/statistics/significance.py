"""Is a paired difference more than chance? Permutation tests and Holm's correction.

All tests ask the same question of independent units (requests, blocks of them): if the baseline and the other operating
point were interchangeable, how often would a difference at least as large as the observed one arise (two-sided)?
Under that hypothesis the two sides of every pair may be swapped, or unpaired units dealt out anew, and nothing is
assumed about distributions (Fisher 1935; Pitman 1937). With at most ``EXACT_PAIRS`` pairs, or as few deals as those
have swaps, all are counted and the p-value is exact. Beyond, it is estimated from ``SWAPS`` random ones, seeded, as
(1 + as extreme) / (1 + drawn), which never reaches 0 and keeps the test valid (Phipson and Smyth 2010).

What is swapped are whole pairs, and the statistic is the very ratio, or mean, that the table shows. So n pairs cannot
give less than 2 / 2ⁿ, and a test can find nothing where :func:`smallest_p` or :func:`smallest_deal_p` is above the
level. What is not finite is not tested: ``None``. A rearrangement that has no finite statistic counts as extreme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from reports.statistics.intervals import MINIMUM_PAIRS, Pair

Floats: TypeAlias = NDArray[np.float64]

LEVEL = 0.05
EXACT_PAIRS = 14
SWAPS = 9_999
_EXACT_DEALS = 2 ** (EXACT_PAIRS - 1)
_ROUNDING = 1e-9  # two ways of adding up one difference may differ by this share of it
_KEPT = 20_000_000  # bytes of random swaps, or deals, that are kept for the next test: 20 MB
_CHUNK = 2_000_000  # swaps in use at once: 16 MB


def ratio_p(pairs: Sequence[Pair], *, seed: int = 0) -> float | None:
    """Return the p-value of "the paired ratio is 1" (:func:`reports.statistics.intervals.paired_ratio`).

    The statistic is the absolute logarithm of the ratio of totals. ``None`` below ``MINIMUM_PAIRS`` pairs, where a cost
    or its units are negative or not finite, or where swaps could make a total 0.

    Args:
        pairs: independent units; pool repeats first (:func:`reports.statistics.intervals.pooled`).
        seed: decides the random swaps.
    """
    if len(pairs) < MINIMUM_PAIRS:
        return None
    table = np.array([[p.baseline, p.other, p.baseline_units, p.other_units] for p in pairs])
    if (
        not np.isfinite(table).all()
        or np.any(table < 0)
        or not np.all(np.minimum(table[:, ::2], table[:, 1::2]).sum(0) > 0)
    ):
        return None
    baseline, other, baseline_units, other_units = table.T
    moved = np.stack([other - baseline, other_units - baseline_units], axis=1)
    observed = float(_log_ratio(baseline.sum(), other.sum(), baseline_units.sum(), other_units.sum()))

    def size(swaps: Floats) -> Floats:
        cost, units = (swaps @ moved).T
        return np.abs(
            _log_ratio(
                baseline.sum() + cost, other.sum() - cost, baseline_units.sum() + units, other_units.sum() - units
            )
        )

    return swap_p(size, abs(observed) - _ROUNDING * (abs(observed) + 1), len(pairs), seed=seed)


def sign_flip_p(differences: Sequence[float], *, seed: int = 0) -> float | None:
    """Return the p-value of "the mean of the paired differences is 0".

    ``None`` below ``MINIMUM_PAIRS`` of them, and where one is not finite. Arguments as :func:`ratio_p`.
    Differences of 0 carry no evidence either way and make no p-value smaller.
    """
    if len(differences) < MINIMUM_PAIRS:
        return None
    values = np.asarray(differences, dtype=float)
    if not np.isfinite(values).all():
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
    return _p(size, at_least, _swaps(pairs, seed), exact=pairs <= EXACT_PAIRS)


def deal_p(
    size: Callable[[Floats], Floats], at_least: float, first: int, second: int, *, seed: int = 0
) -> float | None:
    """Return the p-value of any statistic of two unpaired groups: how often dealing all units anew makes it as large.

    Args:
        size: as for :func:`swap_p`; its rows are ``[rearrangements, first + second]``, 1 where a unit is dealt to the
            first group. Every row has ``first`` ones.
        at_least: the observed one, less what rounding may take.
        first: units of the one group.
        second: units of the other.
        seed: decides the random deals.
    """
    exact = math.comb(first + second, first) <= _EXACT_DEALS
    return _p(size, at_least, _deals(first, second, seed), exact=exact)


def smallest_p(pairs: int) -> float:
    """Return the p-value of so many pairs that all point the same way: nothing smaller can come out."""
    return 2.0 ** (1 - pairs) if pairs <= EXACT_PAIRS else 1 / (1 + SWAPS)


def smallest_deal_p(first: int, second: int) -> float:
    """Return the p-value of two unpaired groups that lie wholly apart: nothing smaller can come out.

    Of equal groups a deal and its mirror image are as extreme as each other, so that they count twice.
    """
    deals = math.comb(first + second, first)
    return max((2 if first == second else 1) / deals, 0.0 if deals <= _EXACT_DEALS else 1 / (1 + SWAPS))


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


def _log_ratio(baseline: Floats, other: Floats, baseline_units: Floats, other_units: Floats) -> Floats:
    result: Floats = np.log(baseline) - np.log(other) - np.log(baseline_units) + np.log(other_units)
    return result


def _p(size: Callable[[Floats], Floats], at_least: float, rearranged: Iterable[Floats], *, exact: bool) -> float | None:
    if not math.isfinite(at_least):
        return None
    extreme = drawn = 0
    with np.errstate(invalid="ignore"):
        for rows in rearranged:
            extreme += len(rows) - int(np.count_nonzero(size(rows) < at_least))
            drawn += len(rows)
    return extreme / drawn if exact else (1 + extreme) / (1 + drawn)


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


def _deals(first: int, second: int, seed: int) -> Iterator[Floats]:
    """Yield rows of 0 and 1, one a unit, each with ``first`` ones: all of them, or random ones."""
    n = first + second
    if math.comb(n, first) <= _EXACT_DEALS:
        yield _every_deal(first, second)
        return
    kept = _random_deals(first, second, seed) if n * SWAPS <= 8 * _KEPT else None
    for rows in _packed_deals(first, second, seed) if kept is None else kept:
        yield np.unpackbits(rows, axis=1, count=n).astype(float)


@lru_cache(maxsize=EXACT_PAIRS)
def _every_deal(first: int, second: int) -> Floats:
    chosen = np.array(list(combinations(range(first + second), first)))
    rows = np.zeros((len(chosen), first + second))
    np.put_along_axis(rows, chosen, 1.0, axis=1)
    return rows


@lru_cache(maxsize=2)
def _random_deals(first: int, second: int, seed: int) -> list[NDArray[np.uint8]]:
    return list(_packed_deals(first, second, seed))


def _packed_deals(first: int, second: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield random deals some rows at a time, eight units to a byte: to shuffle costs more than to unpack."""
    generator = np.random.default_rng(seed)
    one = np.repeat(np.array([1, 0], dtype=np.uint8), [first, second])
    step = max(1, _CHUNK // len(one))
    for start in range(0, SWAPS, step):
        rows = np.tile(one, (min(step, SWAPS - start), 1))
        yield np.packbits(generator.permuted(rows, axis=1), axis=1)
