"""A threshold from a mixture of two Beta distributions, fitted by what became of a row's own tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy.stats import beta as beta_distribution

from harness.contracts import Batch, Draft, ModelInfo
from harness.errors import OptionError
from strategies.free import Free, Seen, beta_of, threshold_of


def test_moments_are_matched() -> None:
    # .7 and .9: mean .8, variance .01, so α + β = .16 / .01 − 1 = 15
    assert beta_of([Seen(0.9, True), Seen(0.7, True)]) == pytest.approx((12.0, 3.0))
    # .2 counts three times as much as .6: mean .3, variance .03, so α + β = .21 / .03 − 1 = 6
    assert beta_of([Seen(0.2, True, 3), Seen(0.6, True)]) == pytest.approx((1.8, 4.2))
    alpha, beta = beta_of([Seen(1.0, True), Seen(1.0, True)])  # no variance, and the edge
    assert math.isfinite(alpha + beta)
    assert alpha / (alpha + beta) == pytest.approx(0.999)


def test_the_threshold_is_where_the_posterior_reaches_what_is_asked() -> None:
    seen = [Seen(0.9, True), Seen(0.7, True), Seen(0.9, True), Seen(0.7, True), Seen(0.5, False), Seen(0.3, False)]
    # right: 2/3 · Beta(12, 3), by the variance of all four; wrong: 1/3 · Beta(9.2, 13.8)
    for posterior in (0.5, 0.9, 0.99):
        grid = [step / 100 for step in range(1, 100)]
        right = [2 / 3 * beta_distribution.pdf(c, 12, 3) for c in grid]
        wrong = [1 / 3 * beta_distribution.pdf(c, 9.2, 13.8) for c in grid]
        enough = [one / (one + other) >= posterior for one, other in zip(right, wrong, strict=True)]
        least = next(c for place, c in enumerate(grid) if all(enough[place:]))
        assert threshold_of(seen, posterior) == least
        assert 0.3 < least < 0.9


def test_too_little_is_known_or_none_would_do() -> None:
    assert threshold_of([Seen(0.9, True)] * 5 + [Seen(0.2, False)], 0.9) is None
    assert threshold_of([Seen(0.9, False)] * 5 + [Seen(0.2, True)], 0.9) is None
    alike = [Seen(value, right) for right in (True, False) for value in (0.4, 0.6)]
    assert threshold_of(alike, 0.6) == math.inf  # the two are one distribution: the posterior is ½ everywhere
    assert threshold_of(alike, 0.4) == 0.01


def ask(rule: Any, view: Any, probabilities: Any, made: list[int], confidence: float) -> bool:
    """One row's answer where token 1 has a confidence, after the tokens made so far."""
    seen = view(logits=probabilities([1 - confidence, confidence]), rows=[0], exit_layer=14)
    seen.token_ids = [made]
    answer: bool = rule.should_exit(seen).item()
    return answer


def test_tokens_that_went_deep_teach(view: Any, probabilities: Any, model: ModelInfo) -> None:
    options = Free(threshold=0.95, posterior=0.6, every=100)
    rule: Any = options.start(model, Batch((0,), "cpu"))
    made = [7]
    known = [(0.9, 1), (0.55, 0), (0.7, 1), (0.65, 0)]  # confidence of token 1, and what full depth said
    for confidence, deep in known:
        assert not ask(rule, view, probabilities, made, confidence)
        made = [*made, deep]
        assert rule.threshold(0) == 0.95
    assert not ask(rule, view, probabilities, made, 0.6)  # learns of the fourth here
    expected = threshold_of([Seen(confidence, deep == 1) for confidence, deep in known], 0.6)
    assert rule.threshold(0) == pytest.approx(expected)
    assert 0.6 < rule.threshold(0) < 0.95
    made = [*made, 1]
    assert ask(rule, view, probabilities, made, 0.94)  # below the threshold that it began with


def test_one_of_so_many_confident_tokens_goes_deep_and_counts_for_all(
    view: Any, probabilities: Any, model: ModelInfo
) -> None:
    rule: Any = Free(threshold=0.8, every=3).start(model, Batch((0,), "cpu"))
    answers = [ask(rule, view, probabilities, [1] * number, 0.9) for number in range(1, 8)]
    assert answers == [True, True, False, True, True, False, True]
    assert [(one.right, one.weight) for one in rule._row(0).seen] == [(True, 3.0), (True, 3.0)]


def test_verified_drafts_teach_and_nothing_is_sent(view: Any, probabilities: Any, model: ModelInfo) -> None:
    rule: Any = Free(threshold=0.8, every=1).start(model, Batch((0,), "cpu"))
    draft = Draft(0, [3], [5])
    assert rule.propose(draft, 4) == ()
    for number in range(3):
        assert ask(rule, view, probabilities, [5, *[1] * number], 0.9)
    # Of three drafted the first stands, the second is replaced, the third was made behind a wrong one.
    draft.token_ids = [5, 1, 0]
    rule.verified(draft, 1)
    assert [(one.right, one.weight) for one in rule._row(0).seen] == [(True, 1.0), (False, 1.0)]
    assert rule._row(0).waiting == {}


def test_it_asks_at_one_exit_point(model: ModelInfo) -> None:
    assert Free(layer=8).exit_points(model) == (8,)
    with pytest.raises(OptionError, match="free:layer=5 is not an exit point"):
        Free(layer=5).exit_points(model)
