"""Numbers that no machine reaches are told from those that are merely large."""

from __future__ import annotations

import pytest

from reports.statistics.plausible import LARGEST, all_plausible, is_measurable, is_plausible, numbers_of


@pytest.mark.parametrize("number", [0, -0.0, 1, -1.5, 5e-324, LARGEST, -LARGEST, True])
def test_what_can_be_true(number: float) -> None:
    assert is_plausible(number)


@pytest.mark.parametrize("number", [1e308, -1e308, 1.001e12, 10**400, float("inf"), float("nan"), -float("inf")])
def test_what_cannot(number: float) -> None:
    assert not is_plausible(number)
    assert not is_measurable(number)


@pytest.mark.parametrize(("number", "measurable"), [(0.0, True), (1e-9, True), (5e-324, False), (-1.0, False)])
def test_what_can_have_been_measured(number: float, measurable: bool) -> None:
    assert is_measurable(number) is measurable


def test_every_number_of_a_document_is_looked_at() -> None:
    document = {"a": [1, {"b": (2.5, "x", None)}], "c": {"d": 1e308}}
    assert list(numbers_of(document)) == [1, 2.5, 1e308]
    assert not all_plausible(numbers_of(document))
    assert all_plausible([None, 3])
