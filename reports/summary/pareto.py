"""Which operating points are worth having: the front of quality against cost.

Quality is edit similarity, the one task score that both protocols and both languages report and that moves
with every token (exact match is mostly 0 for small models, and agreement with full depth is faithfulness,
not quality). Cost is measured energy per token where **every** row of the table has it from one sensor, per
request where stop rules cut completions short, so that prefill is spread over fewer tokens; otherwise the median
latency of a request. An estimate of energy is a function of CPU time: it would only repeat the time axis under a
more impressive name, so it never decides a front.

The oracle is a bound and never a candidate. With random weights quality means nothing and there is no front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.contracts import Metric
from harness.records.summary import Summary, SummaryRow
from reports.metrics.energy import ENERGY_PER_REQUEST, ENERGY_PER_TOKEN
from reports.metrics.scores import EDIT_SIMILARITY
from reports.metrics.time import LATENCY_P50
from reports.tables.result import ResultTable, is_candidate, split_tables

__all__ = ["QUALITY", "Axes", "choose_axes", "coordinates", "front", "mark_front", "stops"]

QUALITY = EDIT_SIMILARITY


@dataclass(frozen=True, slots=True)
class Axes:
    """The two coordinates of a table's front.

    Attributes:
        quality: name of a score, more is better.
        cost: less is better.
    """

    quality: str
    cost: Metric

    @property
    def names(self) -> tuple[str, str]:
        """Quality and cost in words, without units."""
        if self.cost is LATENCY_P50:
            cost = self.cost.meaning
        else:
            cost = f"measured energy per {'request' if self.cost is ENERGY_PER_REQUEST else 'token'}"
        return self.quality.replace("_", " "), cost


def choose_axes(rows: Sequence[SummaryRow]) -> Axes | None:
    """Return the axes that the rows of one table can be compared on.

    ``None`` with random weights, or when nothing was measured at all.
    """
    measured = [row for row in rows if row.n]
    if not measured or any(row.weights == "random" for row in measured):
        return None
    sources = {row.energy_source for row in measured}
    sensor = len(sources) == 1 and all(row.energy_measured for row in measured)
    energy = ENERGY_PER_REQUEST if stops(rows) else ENERGY_PER_TOKEN
    if sensor and all(row.value(energy) is not None for row in measured):
        return Axes(QUALITY, energy)
    return Axes(QUALITY, LATENCY_P50)


def stops(rows: Sequence[SummaryRow]) -> bool:
    """Whether some rows have a stop rule, so that rows differ in how much they generate."""
    return any(row.stop for row in rows)


def coordinates(row: SummaryRow, axes: Axes) -> tuple[float, float] | None:
    """Return ``(cost, quality)``, ``None`` when either was not measured."""
    cost, quality = row.value(axes.cost), row.value(axes.quality)
    return None if cost is None or quality is None else (cost, quality)


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say for each ``(cost, quality)`` whether no other point is at least as good in both and better in one.

    Exact comparisons. Equal points are on the front together or not at all.
    """
    on_front = [False] * len(points)
    best = float("-inf")  # quality of what is strictly cheaper
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    for index in order:
        cost, quality = points[index]
        if quality > best:
            best, cost_of_best = quality, cost
            on_front[index] = True
        elif quality == best:
            on_front[index] = cost == cost_of_best
    return on_front


def mark_front(summary: Summary) -> Summary:
    """Return the summary with ``pareto`` set anew in every table. Rows that lack a coordinate are not on it."""
    on_front: set[int] = set()
    for table in split_tables(summary):
        on_front.update(id(row) for row, flag in zip(table.rows, _flags(table), strict=True) if flag)
    rows = tuple(row.model_copy(update={"pareto": id(row) in on_front}) for row in summary.rows)
    return summary.model_copy(update={"rows": rows})


def _flags(table: ResultTable) -> list[bool]:
    axes = choose_axes(table.rows)
    flags = [False] * len(table.rows)
    if axes is None:
        return flags
    placed = [
        (index, point)
        for index, row in enumerate(table.rows)
        if is_candidate(row) and (point := coordinates(row, axes)) is not None
    ]
    for (index, _), on_front in zip(placed, front([point for _, point in placed]), strict=True):
        flags[index] = on_front
    return flags
