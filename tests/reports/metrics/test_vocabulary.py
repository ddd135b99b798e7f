"""Metrics are declared in one place, and everything that is shown of them comes from there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from harness.contracts import Metric
from harness.errors import RegistryError
from harness.records.estimate import Estimate
from harness.registry import METRICS, SCORES
from reports.metrics.evaluation import evaluate
from reports.metrics.point import Point
from reports.metrics.vocabulary import all_metrics, metrics_of, score_metrics
from reports.summary.measured import select


def test_every_metric_is_complete() -> None:
    metrics = all_metrics()
    assert len({metric.name for metric in metrics}) == len(metrics)
    scores = [name for name in SCORES.names() if SCORES.load(name)().judges_all]
    assert "identifier_match" not in scores  # of one benchmark: named where it was recorded
    assert "identifier_match" in {metric.name for metric in all_metrics(["identifier_match"])}
    assert {metric.name for metric in metrics} == {
        *METRICS.names(), *scores, *(f"{name}_difference" for name in scores),
    }  # fmt: skip
    for metric in metrics:
        assert metric.sections
        assert metric.meaning
        assert metric.header.count("\n") <= 1


def test_a_score_that_nobody_knows_is_a_metric_all_the_same(build: Any) -> None:
    run = build()
    for block in range(6):
        for point in run.points:
            run.window(point, {"scores": {"taste": 0.25 if point == "full" else 0.75}}, block=block)
    row = run.row("fixed:layer=5")
    assert row.value("taste") == 0.75
    assert row.value("taste_difference") == 0.5
    assert "taste" not in (row.verdict or "")  # whether more of it is better is not known
    score, difference = score_metrics("taste")
    assert {score, difference} < set(metrics_of([row]))
    assert score.term == "taste"


def test_a_metric_is_a_mean_or_percentile_of_samples_or_of_everything(build: Any) -> None:
    run = build()
    run.window("full", {"latency_s": 1.0}, {"latency_s": 2.0}, {"latency_s": 6.0})
    cells = tuple(select(run.manifest, run.windows, run.samples).values())
    full, other = (Point(cell, cells, run.manifest) for cell in cells)

    def metric(**facts: Any) -> Metric:
        return Metric(name="m", header="m", meaning="made up", **facts)

    mean, median = (metric(of_sample=lambda sample: sample.latency_s, percentile=p) for p in (None, 50))
    known = Estimate(value=1, low=0, high=2)
    whole = metric(compute=lambda point: known)
    here, there = evaluate([mean, median, whole], [full, other], Counter())
    assert [one.estimate for one in here.values()] == [Estimate(value=3.0), Estimate(value=2.0), known]
    assert there[mean].estimate is None
    with pytest.raises(RegistryError, match="no number"):
        evaluate([metric(compute=lambda point: "much")], [full], Counter())
