"""Which setting keeps a promise about a mean loss: tests and bounds that hold at any number of documents.

The **risk** of a setting is its mean loss over all documents there could be; a loss lies in [0, 1]. Documents are the
independent units, drawn alike. Two promises:

- **learn then test** (Angelopoulos et al. 2021, arXiv 2110.01052): with probability 1 − δ over the calibration
  documents, the chosen setting's risk is at most ε. Settings are tested in an order fixed beforehand, from strict to
  lax, each at δ; the first that fails ends it (fixed-sequence testing, as in CALM, Schuster et al. 2022, arXiv
  2207.07061, section 4), so that no correction is due. Nothing is assumed of how risks depend on settings.
- **conformal risk control** (Angelopoulos et al. 2022, arXiv 2208.02814, theorem 1): the expected loss of one more
  document is at most ε, on average over calibration documents, without a probability beside it. It needs losses that
  never fall towards laxer settings. Free-running text has none such, so each document's loss counts as the largest of
  its losses up to there, which can only overstate it. Jazbec et al. 2024 (arXiv 2405.20915) use both for early exit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, rel_entr

Losses: TypeAlias = NDArray[np.float64]
PValue: TypeAlias = Callable[[Losses, float, float], float]
"""``(losses, ε, δ) -> p``: how likely losses like these were, at most, if the risk were above ε."""

MOST_DOCUMENTS = 1_000_000
"""Where a search for a number of documents ends."""


def hoeffding_bentkus(losses: Losses, risk: float, delta: float = 0.05) -> float:
    """Return the Hoeffding–Bentkus p-value of "the risk is above ``risk``".

    ``min(exp(−n h(min(r, ε), ε)), e P(Bin(n, ε) ≤ ⌈n r⌉))`` with r the mean loss and h the relative entropy of two
    coins: Bates et al. 2021 (arXiv 2101.02703), as Angelopoulos et al. 2021 use it.
    """
    n, mean = len(losses), math.fsum(losses) / len(losses)
    low = min(mean, risk)
    hoeffding = math.exp(-n * float(rel_entr(low, risk) + rel_entr(1 - low, 1 - risk)))
    return min(1.0, hoeffding, math.e * float(bdtr(math.ceil(n * mean - 1e-9), n, risk)))


def betting_martingale(losses: Losses, risk: float, delta: float = 0.05) -> float:
    """Return the p-value of Waudby-Smith and Ramdas' betting martingale, of "the risk is above ``risk``".

    ``1 / max_i Π_{j ≤ i} (1 + ν_j (ε − loss_j))``, where ``ν_j = min(1, sqrt(2 ln(1/δ) / (n σ²_{j−1})))`` looks at
    the documents before j only: the one-sided test of Waudby-Smith and Ramdas 2020 (arXiv 2010.09686) with the bets
    that Bates et al. 2021 (arXiv 2101.02703) size by the empirical variance. It gains where losses vary little. The
    order of the documents counts, and must not depend on their losses.
    """
    count = np.arange(1, len(losses) + 1)
    means = (0.5 + np.cumsum(losses)) / (1 + count)
    variances = (0.25 + np.cumsum((losses - means) ** 2)) / (1 + count)
    before = np.concatenate(([0.25], variances[:-1]))
    bets = np.minimum(1, np.sqrt(2 * math.log(1 / delta) / (len(losses) * before)))
    wealth = np.cumsum(np.log1p(bets * (risk - losses)))
    return math.exp(-max(0.0, float(wealth.max())))


P_VALUES: dict[str, PValue] = {"hoeffding-bentkus": hoeffding_bentkus, "betting": betting_martingale}


def certified_by_tests(losses: Losses, risk: float, delta: float, p_value: PValue) -> list[float]:
    """Return the p-values of settings tested in order, the first one above δ included; those before it passed."""
    found = []
    for row in losses:
        found.append(p_value(row, risk, delta))
        if not found[-1] <= delta:  # nor where it is no number
            break
    return found


def expectation_bounds(losses: Losses) -> list[float]:
    """Return what conformal risk control promises of each setting's expected loss: ``(Σ loss + 1) / (n + 1)``."""
    largest = np.maximum.accumulate(losses, axis=0)
    return [(math.fsum(row) + 1) / (len(row) + 1) for row in largest]


def certified_in_expectation(losses: Losses, risk: float) -> int:
    """Return how many settings, from the strictest on, have an expected loss of at most ε."""
    return sum(bound <= risk for bound in expectation_bounds(losses))


def fewest_documents(risk: float, delta: float, p_value: PValue) -> int | None:
    """Return how many documents it takes if none of them has any loss; ``None``: more than a million."""
    return _fewest(lambda n: p_value(np.zeros(n), risk, delta) <= delta)


def fewest_in_expectation(risk: float) -> int:
    """Return how many documents conformal risk control takes if none of them has any loss."""
    return math.ceil(round(1 / risk - 1, 9))


def documents_needed(losses: Losses, risk: float, passes: Callable[[Losses], bool]) -> int | None:
    """Return how many documents with losses like these would pass."""
    if math.fsum(losses) / len(losses) >= risk:
        return None
    return _fewest(lambda n: passes(np.resize(losses, n)), len(losses))


def _fewest(passes: Callable[[int], bool], start: int = 1) -> int | None:
    """Return the least number that passes, by doubling and bisection; ``None`` above ``MOST_DOCUMENTS``."""
    low, high = 0, start
    while not passes(high):
        if high >= MOST_DOCUMENTS:
            return None
        low, high = high, min(2 * high, MOST_DOCUMENTS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
