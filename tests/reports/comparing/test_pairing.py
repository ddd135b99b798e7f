"""Units pair when they hold the same prompts, whatever blocks the runs formed of them."""

from __future__ import annotations

import pytest

from harness.contracts import Metric
from reports.comparing.change import find_metric
from reports.comparing.pairing import pair_units
from reports.metrics.point import Units

RATE, MEDIAN = map(find_metric, ("tokens_per_s", "latency_p50"))
LETTERS = frozenset("abcdefghij")


def units(*blocks: str) -> Units:
    return {frozenset(block): (float(len(block)), 1.0 + index) for index, block in enumerate(blocks)}


def keys(*blocks: str) -> list[frozenset[str]]:
    return [frozenset(block) for block in blocks]


def test_equal_blocks_pair_in_any_order() -> None:
    found = pair_units(RATE, units("ab", "cd"), units("cd", "ab"), LETTERS)
    assert found is not None
    assert list(found.a) == list(found.b) == keys("ab", "cd")
    assert found.b[frozenset("ab")] == (2.0, 2.0)
    assert not found.joined


@pytest.mark.parametrize(("metric", "row"), [(RATE, (4.0, 3.0)), (MEDIAN, (2.0, 1.0, 2.0, 2.0))])
def test_smaller_blocks_join_to_larger_ones(metric: Metric, row: tuple[float, ...]) -> None:
    found = pair_units(metric, units("ab", "cd", "ef"), units("abcd", "ef"), LETTERS)
    assert found is not None
    assert list(found.a) == list(found.b) == keys("abcd", "ef")
    assert found.a[frozenset("abcd")] == row
    assert found.b[frozenset("abcd")] == (4.0, 1.0)
    assert found.joined


def test_blocks_that_overlap_join_until_none_does() -> None:
    found = pair_units(RATE, units("abc", "def", "gh"), units("ab", "cd", "ef", "gh"), LETTERS)
    assert found is not None
    assert list(found.a) == list(found.b) == keys("abcdef", "gh")


def test_what_would_blur_or_leave_out_too_much_does_not_pair() -> None:
    assert pair_units(RATE, units("ab", "cd", "ef", "gh"), units("a", "bc", "de", "fg", "h"), LETTERS) is None
    assert pair_units(RATE, units("ab", "cd", "ij"), units("ab", "cd", "ij"), LETTERS - {"a"}) is None
    assert pair_units(RATE, units("ab"), units("cd"), LETTERS) is None
    assert pair_units(RATE, {}, units("cd"), LETTERS) is None


def test_what_only_one_run_measured_is_no_obstacle() -> None:
    found = pair_units(RATE, units("ab", "cd", "ef", "gh"), units("ab"), LETTERS)
    assert found is not None
    assert list(found.a) == list(found.b) == keys("ab")
