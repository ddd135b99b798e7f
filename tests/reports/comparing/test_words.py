"""Words for a change that was not found: none, too few prompts, too many operating points, or only of other metrics."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.contracts import Metric
from reports.comparing.change import AGREEMENT, Change, compared_metrics
from reports.comparing.pairing import Matched
from reports.comparing.results import PointChange, overall, verdict
from reports.metrics.depth import LAYERS_SKIPPED
from reports.statistics.significance import SWAPS, smallest_p


def point_of(changes: tuple[Change, ...]) -> PointChange:
    return PointChange("py150", "full", "full", Matched(frozenset("a"), frozenset("a"), 1, 1), changes)


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
    point = point_of(changes)
    assert verdict(point) == words
    assert f"Time of requests: {words} at 1 of 1 operating point." in overall([point])


def change_of(metric: Metric, *, units: int, moved: bool = False) -> Change:
    """A change of a tenth, distinguishable if ``moved``; of so few units that none could be, below six."""
    interval, p = ((0.05, 0.15), 0.001) if moved else ((-0.1, 0.3), 1.0)
    return Change(metric, 1.0, 1.1, 0.1, 0.1, interval, interval, p, p, smallest_p=smallest_p(units))


@pytest.mark.parametrize(
    ("work", "others", "moved", "words"),
    [
        (200, 5, "", "too few prompts to tell"),  # layers skipped were tested, which says nothing of time
        (200, 200, "", "no distinguishable change"),
        (5, 200, "", "no distinguishable change"),
        (200, 5, "tokens_per_s exact_prefix", "changed: exact prefix, tokens/s"),
        (200, 200, "tokens_per_s latency_p50_s", "requests 10.0 % [5.0, 15.0] slower"),
    ],
)
def test_unchanged_work_does_not_say_that_nothing_changed(work: int, others: int, moved: str, words: str) -> None:
    changes = tuple(
        change_of(metric, units=work if metric is LAYERS_SKIPPED else others, moved=metric.name in moved.split())
        for metric in compared_metrics()
    )
    assert verdict(point_of(changes)) == words


def test_work_alone_is_told_where_nothing_else_is_known() -> None:
    alone = (change_of(LAYERS_SKIPPED, units=200), Change(AGREEMENT, reason="not measured in both"))
    assert verdict(point_of(alone)) == "no distinguishable change"
