"""All metrics there are: those that are registered, and two for every score."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from harness.contracts import Metric
from harness.contracts.scores import registered_scores
from harness.errors import RegistryError
from harness.records.summary import SummaryRow
from harness.registry import METRICS, SCORES
from reports.metrics.scores import score_metrics, scores_of
from reports.metrics.sections import in_section, sections_of


def all_metrics(scores: Iterable[str] = ()) -> tuple[Metric, ...]:
    """Return every metric in reading order.

    Args:
        scores: names of scores that were recorded, known here or not.
    """
    named = {*_general_scores(), *scores} - SummaryRow.model_fields.keys()
    return _ordered(tuple(sorted(named)))


def metrics_of(rows: Iterable[SummaryRow]) -> tuple[Metric, ...]:
    """Return every metric in reading order, those of rows included that nothing installed here explains."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    known = all_metrics([*scores_of(names), *(name for name in names if name in SCORES)])
    explained = {metric.name for metric in known}
    return (*known, *(_unexplained(name) for name in names if name not in explained))


@cache
def _ordered(scores: tuple[str, ...]) -> tuple[Metric, ...]:
    made = [metric for name in scores for metric in score_metrics(name)]
    found = [*_registered(), *(metric for metric in made if metric.name not in METRICS)]
    return tuple(dict.fromkeys(one for section in sections_of(found) for one in in_section(found, section)))


@cache
def _general_scores() -> frozenset[str]:
    """Return the names of the scores that judge every completion; those of one benchmark are named where recorded."""
    return frozenset(name for name, score in registered_scores().items() if score.judges_all)


@cache
def _registered() -> tuple[Metric, ...]:
    found = []
    for name, metric in METRICS.usable().items():
        with METRICS.leaving_out(name):
            if not isinstance(metric, Metric) or metric.name != name:
                raise RegistryError(f"the metric '{name}' ({METRICS.entry(name).target}) is no Metric of that name.")
            if (metric.of_sample is None) == (metric.compute is None):
                raise RegistryError(f"the metric '{name}' must have one of of_sample and compute.")
            found.append(metric)
    return tuple(found)


@cache
def _unexplained(name: str) -> Metric:
    meaning = "as recorded: the package that this metric comes from is not installed here"
    return Metric(name=name, header=name, meaning=meaning, compute=lambda _: None)
