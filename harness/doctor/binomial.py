"""How far a share counted over few trials may be from the truth."""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["central_range", "wilson_interval"]


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a probability from counted successes (Wilson 1927).

    Args:
        successes: 0…trials.
        trials: at least 1.
        confidence: of the interval.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, z2 = successes / trials, z * z
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def central_range(trials: int, probability: float, confidence: float = 0.95) -> tuple[int, int]:
    """Return the counts between which a binomial number lies with at least this confidence, tails of equal size.

    Args:
        trials: at least 1.
        probability: of one success.
        confidence: of the range.
    """
    tail = (1 - confidence) / 2
    masses = [
        math.comb(trials, count) * probability**count * (1 - probability) ** (trials - count)
        for count in range(trials + 1)
    ]
    low = next(count for count in range(trials + 1) if math.fsum(masses[: count + 1]) > tail)
    high = next(count for count in range(trials, -1, -1) if math.fsum(masses[count:]) > tail)
    return low, high
