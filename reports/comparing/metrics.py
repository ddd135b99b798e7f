"""What can be compared between two runs: every metric that has independent units, and the agreement of the two."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.contracts import Metric
from harness.errors import UnknownNameError
from reports.metrics.vocabulary import all_metrics

__all__ = ["AGREEMENT", "compared_metrics", "find_metric", "needed_units"]

AGREEMENT = Metric(
    name="agreement",
    header="A = B",
    meaning="share of the longer completion's places where both have one token",
    units=lambda _: {},
    kind="work",
    better="higher",
    form="fraction",
)
"""The one number that belongs to both runs together, and is no change."""


def compared_metrics(scores: Iterable[str] = ()) -> tuple[Metric, ...]:
    """Return the metrics of a comparison, scores first, in the order of tables.

    Args:
        scores: names of scores that the runs recorded.
    """
    found = [metric for metric in all_metrics(scores) if metric.units or metric.of_sample]
    judged = [metric for metric in found if metric.kind == "score"]
    return (*judged, AGREEMENT, *(metric for metric in found if metric.kind != "score"))


def find_metric(name: str, scores: Iterable[str] = ()) -> Metric:
    """Return a metric by name, or by its name without the unit: ``latency_p50`` is ``latency_p50_s``.

    Args:
        name: of the metric.
        scores: names of scores that the runs recorded.

    Raises:
        UnknownNameError: there is none; names the closest one.
    """
    metrics = {metric.name: metric for metric in compared_metrics(scores)}
    plain = {re.sub(r"_[sjw](?=_|$)", "", known): metric for known, metric in metrics.items()}
    found = metrics.get(name) or plain.get(name)
    if found is None:
        raise UnknownNameError("metric", name, metrics)
    return found


def needed_units(metric: Metric) -> int:
    """Return below how many prompts there is no interval: five of them must lie beyond a percentile."""
    return 5 if metric.percentile is None else round(500 / (100 - metric.percentile))
