"""The columns of a report: a metric's estimates as they are written everywhere.

A comparison with full depth that passes its test carries a ``*``, one without an interval ``[too few]``. What is a
column, where it stands and how it is written are facts of the metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from harness.contracts import Metric
from harness.records.summary import SummaryRow
from reports.metrics.evaluation import is_distinguishable
from reports.metrics.sections import HEADLINE, in_section, sections_of
from reports.metrics.time import LATENCY_P99
from reports.metrics.vocabulary import metrics_of
from reports.tables.table import Column

_MILLISECONDS_BELOW_S = 10.0
_FORMS = {"number": "digits", "seconds": "digits", "count": ".0f"}


def time_unit(seconds: Iterable[float | None]) -> tuple[str, float]:
    """Return the unit that suits these times and what to multiply seconds by."""
    longest = max((value for value in seconds if value is not None), default=0.0)
    return ("ms", 1e3) if longest < _MILLISECONDS_BELOW_S else ("s", 1.0)


def columns_of(rows: Sequence[SummaryRow]) -> dict[Metric, Column]:
    """Return every column of some rows in reading order, also those without any value.

    One that says in every row what the metric says that it restates is left out.
    """
    return {
        metric: _column(rows, metric)
        for metric in metrics_of(rows)
        if not (metric.restates and all(row.estimate(metric) == row.estimate(metric.restates) for row in rows))
    }


def headline_columns(rows: Sequence[SummaryRow], *, counts: bool) -> list[Column]:
    """Return the filled columns of the first table, in reading order; every row says its KV policy.

    Args:
        rows: of the table.
        counts: how many samples were scored, and how many failed, stand in it as well.
    """
    columns = columns_of(rows)
    policies = Column(
        header="KV", cells=tuple(row.kv or None for row in rows), kind="text", name="kv",
        meaning="what skipped layers leave",
    )  # fmt: skip
    samples = [
        Column(header="n", cells=tuple(row.n for row in rows), form=".0f", name="n", meaning="samples scored"),
        Column(
            header="errors", cells=tuple(row.errors for row in rows), form=".0f", name="errors",
            meaning="samples that failed",
        ),
    ]  # fmt: skip
    filled = [metric for metric, column in columns.items() if not column.empty]
    return [
        policies,
        *(samples if counts else []),
        *(columns[metric] for metric in in_section(filled, HEADLINE)),
    ]


def sections_with_columns(columns: Mapping[Metric, Column]) -> list[tuple[str, list[Column]]]:
    """Return title and filled columns of each section below the headline that has one."""
    filled = [metric for metric, column in columns.items() if not column.empty]
    return [(title, [columns[one] for one in in_section(filled, title)]) for title in sections_of(filled)]


def explanations(rows: Sequence[SummaryRow]) -> list[list[Column]]:
    """Return every column that a row fills, once, by the first section it stands in, the headline's first."""
    columns = columns_of(rows)
    left = [metric for metric, column in columns.items() if not column.empty]
    found = []
    for title in (HEADLINE, *sections_of(left)):
        metrics = in_section(left, title)
        found.append([columns[metric] for metric in metrics])
        left = [metric for metric in left if metric not in metrics]
    return found


def _column(rows: Sequence[SummaryRow], metric: Metric) -> Column:
    estimates = tuple(row.estimate(metric) for row in rows)
    scale, unit = 1.0, _energy_label(rows) if metric.kind == "energy" else ""
    if metric.form == "seconds":
        unit, scale = time_unit(row.value(LATENCY_P99) for row in rows)
    return Column(
        header=metric.header,
        cells=estimates,
        form=_FORMS.get(metric.form, metric.form),
        scale=scale,
        unit=unit,
        meaning=metric.meaning,
        name=metric.name,
        intervals="low" in metric.parts,
        needs_interval=bool(metric.paired),
        priority=math.inf if metric.restates else metric.priority,
        marks=tuple("*" if one is not None and is_distinguishable(metric, one) else "" for one in estimates),
    )


def _energy_label(rows: Iterable[SummaryRow]) -> str:
    """``estimate``, a sensor's name, or ``none``: what the column's header must say."""
    named = {row.energy_source for row in rows if row.n} - {"none"}
    return "mixed" if len(named) > 1 else next(iter(named), "none")
