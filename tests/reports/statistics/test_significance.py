"""p-values that can be counted by hand, valid under the hypothesis, and Holm's correction."""

from __future__ import annotations

import numpy as np
import pytest

from reports.statistics.intervals import MINIMUM_PAIRS, Pair
from reports.statistics.significance import (
    EXACT_PAIRS,
    SWAPS,
    deal_p,
    holm,
    ratio_p,
    sign_flip_p,
    smallest_deal_p,
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


def test_swapped_pairs_counted_by_hand() -> None:
    # Costs only: the ratio of totals moves with the sum of the differences, which are 1, 2, 3, 4, -0.5 again.
    pairs = [Pair(10 + d, 10.0) for d in (1, 2, 3, 4, -0.5)]
    assert ratio_p(pairs) == 4 / 32


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


def test_random_swaps_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.9, -0.4, 1.2, 0.3, -0.1, 0.8, 0.5, -0.6, 0.7, 0.2]
    exact = sign_flip_p(values)
    monkeypatch.setattr("reports.statistics.significance.EXACT_PAIRS", 5)
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.01)
    monkeypatch.setattr("reports.statistics.significance._KEPT", 0)
    monkeypatch.setattr("reports.statistics.significance._CHUNK", 1_000)
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.01)


def test_no_difference_is_no_evidence() -> None:
    assert sign_flip_p([0.0] * 50) == 1.0
    assert ratio_p([Pair(1.0, 1.0)] * 50) == 1.0


def test_too_few_pairs_or_impossible_costs_have_no_p() -> None:
    assert sign_flip_p([1.0] * (MINIMUM_PAIRS - 1)) is None
    assert ratio_p([Pair(2.0, 1.0)] * (MINIMUM_PAIRS - 1)) is None
    assert ratio_p([Pair(1.0, 0.0)] * 10) is None


@pytest.mark.parametrize("n", [8, 25])
def test_false_alarms_are_as_rare_as_promised_and_real_differences_are_found(n: int) -> None:
    generator = np.random.default_rng(n)
    runs = 400

    def alarms(speedup: float) -> float:
        found = 0
        for _ in range(runs):
            size = generator.lognormal(0, 0.5, n)
            noise = generator.lognormal(0, 0.05, (2, n))
            pairs = [Pair(*pair) for pair in (size * noise * [[1.0], [1 / speedup]]).T.tolist()]
            found += (ratio_p(pairs) or 0) <= 0.05
        return found / runs

    assert alarms(1.0) <= 0.08  # 5 % and three standard errors
    assert alarms(1.2) >= 0.95


def test_holm_by_hand() -> None:
    # 4 tests: .01 × 4, then .02 × 3 = .06, then .03 × 2 = .06, then .9
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])


def test_holm_never_falls_below_an_earlier_step_nor_above_one() -> None:
    assert holm([0.02, 0.0201, 0.9, 0.8]) == pytest.approx([0.08, 0.08, 1.0, 1.0])


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm([None, 0.02, None, 0.03]) == pytest.approx([None, 0.04, None, 0.04])
    assert holm([]) == []
    assert holm([0.04]) == [0.04]


def test_holm_keeps_the_family_wise_error_below_the_level() -> None:
    generator = np.random.default_rng(0)
    alarms = sum(min(p for p in holm(generator.random(12).tolist()) if p is not None) <= 0.05 for _ in range(2_000))
    assert 0.03 <= alarms / 2_000 <= 0.065


def dealt_p(first: list[float], second: list[float]) -> float:
    values = np.array(first + second)
    observed = sum(first) / len(first) - sum(second) / len(second)

    def size(deals: np.ndarray) -> np.ndarray:
        assert np.all(deals.sum(1) == len(first))
        means = deals @ values / len(first), (1 - deals) @ values / len(second)
        return np.abs(means[0] - means[1])

    return deal_p(size, abs(observed) - 1e-12, len(first), len(second))


def test_few_units_are_dealt_in_every_way() -> None:
    """5 of 10 can be chosen in 252 ways, of which two set the small ones apart; 3 of 8 in 56, of which one does."""
    assert dealt_p([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == smallest_deal_p(5, 5) == 2 / 252
    assert dealt_p([1, 2, 3], [6, 7, 8, 9, 10]) == smallest_deal_p(3, 5) == 1 / 56
    assert dealt_p([1, 2, 3, 4, 6], [5, 7, 8, 9, 10]) == 4 / 252  # and those two are as far apart or farther
    assert dealt_p([1.0] * 5, [1.0] * 5) == 1.0


def test_many_units_are_dealt_at_random() -> None:
    apart = dealt_p([float(k) for k in range(30)], [100.0 + k for k in range(20)])
    assert apart == smallest_deal_p(30, 20) == 1 / (1 + SWAPS)
    assert smallest_deal_p(8, 8) == 2 / 12_870  # drawn 9,999 times, yet no deal is rarer than that


def test_any_statistic_of_pairs_can_be_tested() -> None:
    """The difference of maxima, 9 against 3: as large only where the 9 stays or goes alone with its side."""
    a, b = np.array([1.0, 1.0, 1.0, 1.0, 9.0]), np.array([3.0, 1.0, 1.0, 1.0, 1.0])

    def size(swaps: np.ndarray) -> np.ndarray:
        one, other = np.where(swaps == 1, b, a), np.where(swaps == 1, a, b)
        return np.abs(one.max(1) - other.max(1))

    assert swap_p(size, 6.0, 5) == 1.0
    assert swap_p(size, 7.0, 5) == 0.5  # 9 and 3 on one side leave 1 on the other
