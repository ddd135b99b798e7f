"""AUROC, calibration error and their intervals, against definitions and values worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from reports.statistics.calibration import auroc, auroc_interval, calibration_error, equal_bins, share_intervals


def counted(*levels: int) -> np.ndarray:
    return np.array(levels)


def test_auroc_by_hand() -> None:
    assert auroc(counted(0, 0, 3), counted(2, 1, 0)) == 1
    assert auroc(counted(3, 0), counted(0, 2)) == 0
    assert auroc(counted(1, 1), counted(1, 1)) == 0.5
    for undefined in ((counted(1, 2), counted(0, 0)), (counted(0, 0), counted(1, 2)), (counted(0, 3), counted(0, 2))):
        assert auroc(*undefined) is None
    # pairs right × wrong: (1, 0) wins, (1, 1) ties, (0, 0) ties, (0, 1) loses twice over
    assert auroc(counted(1, 2), counted(2, 1)) == pytest.approx((2 * 2 + 2 * 0.5 + 2 * 0.5) / 9)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    generator = np.random.default_rng(1)
    right, wrong = generator.integers(0, 5, (2, 7))
    pairs = list(itertools.product(np.repeat(np.arange(7), right), np.repeat(np.arange(7), wrong)))
    expected = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    assert auroc(right, wrong) == pytest.approx(expected)
    assert auroc(wrong, right) == pytest.approx(1 - expected)
    wider = np.insert(right, [2, 5], 0), np.insert(wrong, [2, 5], 0)
    assert auroc(*wider) == pytest.approx(expected), "empty levels say nothing"


def documents(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.poisson([1, 2, 3, 6], (count, 4)), generator.poisson([5, 3, 2, 1], (count, 4))


def test_intervals_hold_the_value_narrow_with_documents_and_repeat() -> None:
    widths = []
    for count in (8, 80):
        right, wrong = documents(count)
        interval = auroc_interval(right, wrong)
        value = auroc(right.sum(0), wrong.sum(0))
        assert interval is not None
        assert value is not None
        assert interval[0] < value < interval[1]
        assert interval == auroc_interval(right, wrong)
        widths.append(interval[1] - interval[0])
    assert widths[1] < widths[0] / 2


def test_tokens_of_one_document_are_not_independent() -> None:
    right, wrong = documents(10)
    interval, again = auroc_interval(right, wrong), auroc_interval(100 * right, 100 * wrong)
    assert interval is not None
    assert again == pytest.approx(interval), "a hundred copies of each token are no further evidence"


def test_shares_are_of_documents() -> None:
    tokens = np.full((12, 2), 10)
    right = np.stack([np.full(12, 5), np.array([0, 10] * 6)], axis=1)
    even, uneven = share_intervals(right, tokens)
    assert even is None, "documents that are all alike do not tell how others differ"
    assert uneven is not None
    assert uneven[0] < 0.35
    assert uneven[1] > 0.65
    tokens[1:, 1] = 0
    assert share_intervals(np.minimum(right, tokens), tokens)[1] is None, "one document"


def test_bins_are_of_equal_size_and_never_part_a_level() -> None:
    assert equal_bins(np.ones(100, dtype=int), 10) == [slice(n, n + 10) for n in range(0, 100, 10)]
    tied = equal_bins(counted(0, 80, 5, 5, 5, 5), 10)
    assert [counted(0, 80, 5, 5, 5, 5)[run].sum() for run in tied] == [80, 10, 10]
    for seed in range(20):
        tokens = np.random.default_rng(seed).integers(0, 9, 30)
        runs = equal_bins(tokens, 7)
        assert sum(tokens[run].sum() for run in runs) == tokens.sum()
        assert len(runs) <= 7
        assert all(tokens[run].sum() for run in runs)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(runs))


def test_calibration_error_by_hand() -> None:
    assert calibration_error([0.2, 0.9], [0.2, 0.9], [5, 7]) == 0
    assert calibration_error([0.5, 1.0], [0.25, 0.5], [3, 1]) == pytest.approx((3 * 0.25 + 0.5) / 4)
    assert calibration_error([], [], []) is None
