"""Words for a change that was not found: none, too few prompts, or too many operating points."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.comparing.change import Change
from reports.comparing.matching import Matched
from reports.comparing.metrics import AGREEMENT, compared_metrics
from reports.comparing.results import PointChange
from reports.comparing.words import overall, verdict
from reports.statistics.significance import SWAPS, smallest_p


@pytest.mark.parametrize(
    ("smallest", "family", "words"),
    [
        (smallest_p(200), 120, "no distinguishable change"),
        (smallest_p(200), 600, "too many operating points to tell"),
        (smallest_p(6), 2, "too few prompts to tell"),
    ],
)
def test_why_no_change_is_named(smallest: float, family: int, words: str) -> None:
    assert smallest_p(200) == 1 / (1 + SWAPS)
    silent = Change(
        AGREEMENT, 1.0, 1.1, 0.1, 0.1, (-0.1, 0.3), (-0.1, 0.3), 1.0, 1.0, smallest_p=smallest, family=family
    )
    changes = tuple(replace(silent, metric=metric) for metric in compared_metrics())
    point = PointChange("py150", "full", "full", Matched(frozenset("a"), frozenset("a"), 1, 1), changes)
    assert verdict(point) == words
    assert f"Time of requests: {words} at 1 of 1 operating point." in overall([point])
