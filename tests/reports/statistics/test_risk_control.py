"""P-values against values worked out by hand, and promises that hold at small numbers of documents."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from reports.statistics.risk_control import (
    P_VALUES,
    Losses,
    betting_martingale,
    certified_by_tests,
    certified_in_expectation,
    documents_needed,
    expectation_bounds,
    fewest_documents,
    fewest_in_expectation,
    hoeffding_bentkus,
)

every_p_value = pytest.mark.parametrize("p_value", P_VALUES.values(), ids=P_VALUES)
Draw = Callable[[np.random.Generator, int], Losses]


def losses(total: int, n: int) -> Losses:
    """``total`` documents that lose everything, spread over ``n``."""
    found = np.zeros(n)
    found[np.linspace(0, n - 1, total, dtype=int)] = 1
    return found


def test_hoeffding_bentkus_by_hand() -> None:
    # no loss: Hoeffding's exp(-n ln(1 / (1 - ε))) is the binomial's (1 - ε)^n, a factor e below Bentkus'
    assert hoeffding_bentkus(losses(0, 10), 0.2) == pytest.approx(0.8**10)
    # 1 of 10 against ε = 0.3: h = .1 ln(1/3) + .9 ln(9/7), so exp(-10 h) = 3 (7/9)^9 = 0.3125;
    # e (0.7^10 + 10 · 0.3 · 0.7^9) = 0.4059
    assert hoeffding_bentkus(losses(1, 10), 0.3) == pytest.approx(3 * (7 / 9) ** 9)
    # 7 of 100 against ε = 0.2: exp(-100 h) = 0.00138, and e P(Bin(100, 0.2) ≤ 7) = e · 0.000277… is smaller
    assert hoeffding_bentkus(losses(7, 100), 0.2) == pytest.approx(
        math.e * sum(math.comb(100, k) * 0.2**k * 0.8 ** (100 - k) for k in range(8))
    )


def test_bets_by_hand() -> None:
    """Two documents, δ = e^-2: the first bet is min(1, sqrt(4 / (2 · 0.25))) = 1."""
    delta = math.exp(-2)
    assert betting_martingale(np.array([0.0, 0.0]), 0.5, delta) == pytest.approx(1 / 1.5**2)
    # the second bet is min(1, sqrt(4 / (2 σ²))), σ² = (1/4 + (1 − 3/4)²) / 2 = 5/32: 1 again; the maximum is before it
    assert betting_martingale(np.array([0.0, 1.0]), 0.5, delta) == pytest.approx(1 / 1.5)
    assert betting_martingale(np.array([1.0, 0.0]), 0.5, delta) == 1  # wealth ½, then ¾
    # δ = e^-1/8: sqrt(2 / 8 / (2 · 0.25)) = sqrt(1/2) is staked
    assert betting_martingale(np.array([0.0, 1.0]), 0.5, math.exp(-1 / 8)) == pytest.approx(1 / (1 + 0.5 * 0.5**0.5))


@every_p_value
def test_p_values_fall_with_documents_and_with_what_is_allowed(p_value: Callable[..., float]) -> None:
    by_n = [p_value(losses(n // 20, n), 0.2, 0.05) for n in (20, 40, 80, 160)]
    by_risk = [p_value(losses(5, 100), risk, 0.05) for risk in (0.04, 0.06, 0.1, 0.2, 0.4)]
    by_loss = [p_value(losses(lost, 100), 0.2, 0.05) for lost in (0, 5, 10, 15, 30)]
    assert by_n == sorted(by_n, reverse=True)
    assert by_risk == sorted(by_risk, reverse=True)
    assert by_loss == sorted(by_loss)
    assert all(0 < p <= 1 for p in by_n + by_risk + by_loss)
    assert by_loss[-1] > 0.5  # a mean above what is allowed is no evidence


KINDS: dict[str, Draw] = {
    "all or nothing": lambda rng, n: (rng.random(n) < 0.2).astype(float),
    "mostly none": lambda rng, n: np.where(rng.random(n) < 0.4, rng.random(n), 0.0),
    "alike": lambda rng, n: rng.uniform(0.1, 0.3, n),
}


@every_p_value
@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_at_the_limit_passes_as_often_as_delta_at_most(p_value: Callable[..., float], kind: str) -> None:
    """Risk exactly 0.2, ε = 0.2, δ = 0.1: of 2,000 calibrations no more than 10 % + 3 standard errors pass."""
    generator = np.random.default_rng(1)
    for n in (10, 60):
        passed = np.mean([p_value(KINDS[kind](generator, n), 0.2, 0.1) <= 0.1 for _ in range(2000)])
        assert passed <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 2000), n


def test_testing_ends_at_the_first_that_fails() -> None:
    for failing in (4, 30):  # 4 by a hair
        table = np.array([losses(0, 50), losses(1, 50), losses(failing, 50), losses(0, 50)])
        found = certified_by_tests(table, 0.2, 0.05, hoeffding_bentkus)
        assert [p <= 0.05 for p in found] == [True, True, False]


def test_bounds_of_expectation_by_hand() -> None:
    table = np.array([[0.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert expectation_bounds(table) == pytest.approx([1.5 / 5, 2.5 / 5, 2.5 / 5])  # losses never fall again
    assert [certified_in_expectation(table, risk) for risk in (0.2, 0.3, 0.5)] == [0, 1, 3]


def test_conformal_risk_control_holds_in_expectation() -> None:
    """Chosen on 20 documents, the expected loss of one more is at most ε; it is near ε, so the test can fail."""
    generator = np.random.default_rng(2)
    settings = np.linspace(0, 1, 41)[:, None]
    lost = []
    for _ in range(4000):
        hardness = generator.random(21)
        table = (hardness < settings).astype(float)  # a document is lost from its own setting on
        passed = certified_in_expectation(table[:, :20], 0.3)
        lost.append(table[passed - 1, 20] if passed else 0.0)
    assert 0.25 < np.mean(lost) <= 0.3 + 3 * math.sqrt(0.21 / 4000)


def test_how_many_documents_it_takes() -> None:
    assert fewest_documents(0.05, 0.05, hoeffding_bentkus) == 59  # 0.95^58 = 0.0510
    assert fewest_documents(0.02, 0.05, hoeffding_bentkus) == 149
    assert fewest_documents(0.05, 0.05, betting_martingale) == 63
    assert fewest_documents(1e-6, 0.05, hoeffding_bentkus) is None  # 2,995,731
    assert [fewest_in_expectation(risk) for risk in (0.05, 0.1, 0.3)] == [19, 9, 3]  # 1 / (n + 1) ≤ ε


@every_p_value
def test_how_many_that_lose_alike_it_would_take(p_value: Callable[..., float]) -> None:
    row = losses(5, 50)

    def passes(some: Losses) -> bool:
        return p_value(some, 0.15, 0.05) <= 0.05

    needed = documents_needed(row, 0.15, passes)
    assert needed is not None
    assert needed > 50
    assert passes(np.resize(row, needed))
    assert not passes(np.resize(row, needed - 1))
    assert documents_needed(row, 0.1, passes) is None
