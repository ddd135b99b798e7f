"""p-values that can be counted by hand, valid under the hypothesis, and Holm's correction."""

from __future__ import annotations

import numpy as np
import pytest

from reports.statistics.intervals import MINIMUM_PAIRS, Pair
from reports.statistics.significance import (
    EXACT_PAIRS,
    SWAPS,
    holm,
    ratio_p,
    sign_flip_p,
    smallest_p,
    swap_p,
)


def test_the_clearest_outcome_has_the_smallest_p() -> None:
    for n in (MINIMUM_PAIRS, 8, EXACT_PAIRS):
        assert sign_flip_p([1.0] * n) == smallest_p(n) == 2 / 2**n
        assert ratio_p([Pair(2.0, 1.0)] * n) == 2 / 2**n
    many = EXACT_PAIRS + 20
    assert sign_flip_p([1.0] * many) == smallest_p(many) == 1 / (1 + SWAPS)


def test_sign_flips_counted_by_hand() -> None:
    # |sum| of 1, 2, 3, 4 and -0.5 is 9.5. As large: all of one sign (10.5) and the 0.5 alone against them (9.5), each
    # in both directions: 4 of 32.
    assert sign_flip_p([1, 2, 3, 4, -0.5]) == 4 / 32
    # Costs only: the ratio of totals moves with the sum of the differences.
    assert ratio_p([Pair(10 + d, 10.0) for d in (1, 2, 3, 4, -0.5)]) == 4 / 32
    assert sign_flip_p([0.0] * 50) == ratio_p([Pair(1.0, 1.0)] * 50) == 1.0  # no evidence
    assert sign_flip_p([1.0] * (MINIMUM_PAIRS - 1)) is ratio_p([Pair(2.0, 1.0)] * (MINIMUM_PAIRS - 1)) is None
    assert ratio_p([Pair(1.0, 0.0)] * 10) is None


def test_random_swaps_agree_with_all_of_them() -> None:
    values = np.random.default_rng(1).normal(0.3, 1, EXACT_PAIRS + 1)
    every = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
    exact = np.mean(np.abs(every @ values) >= abs(values.sum()) - 1e-9)
    assert sign_flip_p(values.tolist()) == pytest.approx(exact, abs=0.015)


def test_units_count() -> None:
    # Twice the seconds for twice the tokens is no difference at all: every swap is as extreme.
    assert ratio_p([Pair(2.0 * n, 1.0 * n, 2 * n, n) for n in range(1, 9)]) == 1.0
    assert ratio_p([Pair(2.0 * n, 1.0 * n, n, n) for n in range(1, 9)]) == 2 / 2**8


@pytest.mark.parametrize("n", [8, 40])
def test_p_does_not_depend_on_direction_scale_or_order(n: int) -> None:
    values = np.random.default_rng(n).normal(0.4, 1, n).tolist()
    p = sign_flip_p(values)
    assert sign_flip_p([-1000 * value for value in values]) == p
    pairs = [Pair(1.0, 1.0 + 0.1 * value) for value in values]
    swapped = [Pair(7 * pair.other, 7 * pair.baseline) for pair in pairs]
    assert ratio_p(swapped) == ratio_p(pairs)
    if n <= EXACT_PAIRS:
        assert sign_flip_p(values[::-1]) == p


def test_holm_by_hand() -> None:
    # 4 tests: .01 × 4, then .02 × 3 = .06, then .03 × 2 = .06, then .9
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.02, 0.0201, 0.9, 0.8]) == pytest.approx([0.08, 0.08, 1.0, 1.0])  # never below an earlier step
    assert holm([None, 0.02, None, 0.03]) == pytest.approx([None, 0.04, None, 0.04])  # nor counting what was not tested


def test_any_statistic_of_pairs_can_be_tested() -> None:
    """The difference of maxima, 9 against 3: as large only where the 9 stays or goes alone with its side."""
    a, b = np.array([1.0, 1.0, 1.0, 1.0, 9.0]), np.array([3.0, 1.0, 1.0, 1.0, 1.0])

    def size(swaps: np.ndarray) -> np.ndarray:
        one, other = np.where(swaps == 1, b, a), np.where(swaps == 1, a, b)
        return np.abs(one.max(1) - other.max(1))

    assert swap_p(size, 6.0, 5) == 1.0
    assert swap_p(size, 7.0, 5) == 0.5  # 9 and 3 on one side leave 1 on the other
