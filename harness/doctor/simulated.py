"""A/A comparisons of synthetic times: do the intervals in tables cover 1 as often as they claim?

Two names for the same work, block by block in random order, as a run measures them. A time is the block's
work × the machine's drift × noise, and now and then an outlier:

- work: log-normal with σ = 0.5; blocks of real prompts differ so much in length;
- drift: a random walk of the log from window to window, σ = 0.005 a step; clocks and neighbours change;
- noise: log-normal with σ = 0.02 per window;
- outliers: 2 % of the windows take 1 + Exp(0.25) times as long.

The true ratio is 1 by construction. Found with 2,000 comparisons each: 92 % of the intervals of 5 pairs cover
it (94 % is the most they can, :func:`most_covered`), 93 to 94 % of those of 8 to 50. Without outliers and with
equal work it is 94 to 95 %: a few large values make the resampled ratios lopsided, and the work of unequal blocks
counts as fewer pairs than there are. Not promised: that a machine's noise is like this; that is what the
real comparison is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reports.statistics.intervals import Pair, bootstrap_interval

__all__ = ["Coverage", "coverage", "most_covered", "simulate_coverage", "synthetic_pairs"]

NUMBERS_OF_PAIRS = (5, 8, 12, 20, 50)
COMPARISONS = 2_000
NOMINAL = 0.95

WORK_SIGMA, DRIFT_SIGMA, NOISE_SIGMA = 0.5, 0.005, 0.02
OUTLIER_SHARE, OUTLIER_SCALE = 0.02, 0.25


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often intervals covered the true ratio.

    Attributes:
        pairs: paired windows of a comparison.
        comparisons: comparisons made.
        covered: how many of their intervals contain 1.
        share: covered ÷ comparisons. share_ci: its 95 % interval (Wilson).
        half_width: median half-width of the intervals, the smallest difference that such a comparison can see;
            ``None`` when there is no interval.
    """

    pairs: int
    comparisons: int
    covered: int
    share: float
    share_ci: tuple[float, float]
    half_width: float | None


def simulate_coverage(
    numbers_of_pairs: Sequence[int] = NUMBERS_OF_PAIRS,
    comparisons: int = COMPARISONS,
    seed: int = 0,
    step: Callable[[int], None] = lambda done: None,
) -> tuple[Coverage, ...]:
    """Compare synthetic times with themselves, through the statistics that tables use.

    Args:
        numbers_of_pairs: paired windows per comparison; one result each.
        comparisons: comparisons per result.
        seed: decides the times.
        step: called with the number of comparisons done.
    """
    found = []
    for place, pairs in enumerate(numbers_of_pairs):
        generator = np.random.default_rng([seed, pairs])
        intervals = []
        for number in range(comparisons):
            # a seed each: with one for all, every comparison would draw the same resamples
            intervals.append(bootstrap_interval(synthetic_pairs(generator, pairs), seed=number))
            step(place * comparisons + number + 1)
        found.append(coverage(pairs, intervals))
    return tuple(found)


def coverage(pairs: int, intervals: Sequence[tuple[float, float] | None]) -> Coverage:
    """Count the intervals that contain 1; a comparison without one covers nothing."""
    from scipy.stats import binomtest

    covered = sum(interval is not None and interval[0] <= 1 <= interval[1] for interval in intervals)
    halves = [(high - low) / 2 for low, high in filter(None, intervals)]
    share_ci = binomtest(covered, len(intervals)).proportion_ci(NOMINAL, method="wilson")
    return Coverage(
        pairs=pairs,
        comparisons=len(intervals),
        covered=covered,
        share=covered / len(intervals),
        share_ci=(float(share_ci.low), float(share_ci.high)),
        half_width=float(np.median(halves)) if halves else None,
    )


def most_covered(pairs: int) -> float:
    """Return the highest coverage that any interval made of resampled pairs can have.

    The ratio of resampled totals lies between the smallest and the largest ratio of a pair. When one name won
    all pairs, which happens by chance in 2 of 2ⁿ comparisons, no such interval reaches 1.
    """
    return 1.0 - 2.0 ** (1 - pairs)


def synthetic_pairs(generator: np.random.Generator, pairs: int) -> list[Pair]:
    """Return the times of one A/A comparison, seconds."""
    work = np.exp(generator.normal(0, WORK_SIGMA, (pairs, 1)))
    drift = np.cumsum(generator.normal(0, DRIFT_SIGMA, 2 * pairs)).reshape(pairs, 2)
    noise = generator.normal(0, NOISE_SIGMA, (pairs, 2))
    hit = generator.random((pairs, 2)) < OUTLIER_SHARE
    slower = 1 + hit * generator.exponential(OUTLIER_SCALE, (pairs, 2))
    times = work * np.exp(drift + noise) * slower  # [pairs, first or second window]
    swapped = generator.random(pairs) < 0.5
    times[swapped] = times[swapped][:, ::-1]
    return [Pair(float(first), float(second)) for first, second in times]
