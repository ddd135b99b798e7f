"""The points of a table on two axes, cost and quality, with their intervals, which are on the front, and its area."""

from __future__ import annotations

from dataclasses import dataclass

from harness.contracts import Metric
from reports.figures.task_table import PlacedPoint, TaskTable
from reports.metrics.depth import EXIT_LAYER
from reports.metrics.energy import ENERGY_PER_REQUEST, ENERGY_PER_TOKEN
from reports.metrics.faithfulness import EXACT_PREFIX, exact_prefixes
from reports.metrics.time import LATENCY_P50
from reports.summary.hypervolume import Candidate, Hypervolume, hypervolumes
from reports.summary.pareto import QUALITY, front, stops
from reports.summary.resampling import Resampled

__all__ = ["COSTS", "QUALITIES", "Cost", "Front", "front_of", "has_front"]


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost axis.

    Attributes:
        key: part of a file's name.
        title: what it is, in a caption.
        metric: that the table's own front may use.
    """

    key: str
    title: str
    metric: Metric


COSTS = (
    Cost("latency", "median latency of a request", LATENCY_P50),
    Cost("energy", "energy per generated token", ENERGY_PER_TOKEN),
    Cost("request-energy", "energy of a request", ENERGY_PER_REQUEST),
    Cost("layers", "layers executed per decoded token", EXIT_LAYER),
)
QUALITIES = {QUALITY: "edit similarity", EXACT_PREFIX.name: "exact prefix of full depth"}


@dataclass(frozen=True, slots=True)
class Front:
    """The points of one table, placed.

    Attributes:
        points: each with its cost and quality.
        on_front: flags, in their order; bounds are never on it.
        hypervolume: of the candidates; ``None`` where full depth was not measured.
    """

    points: tuple[tuple[PlacedPoint, Resampled, Resampled], ...]
    on_front: tuple[bool, ...]
    hypervolume: Hypervolume | None


def front_of(table: TaskTable, cost: Cost, quality: str) -> Front:
    """Place the points of a table on two axes; those that lack a coordinate are left out."""
    placed = [
        (point, x, y)
        for point in table.points
        if (x := _cost(table, point, cost)) is not None and (y := _quality(table, point, quality)) is not None
    ]
    candidates = [index for index, (point, _, _) in enumerate(placed) if not point.bound]
    flags = front([(placed[index][1].value, placed[index][2].value) for index in candidates])
    best = {index for index, flag in zip(candidates, flags, strict=True) if flag}
    full = next((x for point, x, _ in placed if point is table.full), None)
    volume = None
    if full is not None and full.value > 0:
        volume = hypervolumes(
            [Candidate(placed[i][0].row.strategy, placed[i][1], placed[i][2]) for i in candidates], full, table.blocks
        )
    return Front(tuple(placed), tuple(index in best for index in range(len(placed))), volume)


def has_front(table: TaskTable, cost: Cost) -> bool:
    """Whether a front means anything: real weights, two points, and a cost that all of them have."""
    if table.random_weights or len(table.points) < 2 or table.full is None:
        return False
    if (cost.metric is ENERGY_PER_REQUEST) != stops(table.table.rows) and cost.metric is not LATENCY_P50:
        return False  # where completions are cut short, what a token costs says nothing of what they cost
    sources = {point.row.energy_source for point in table.points}
    if cost.metric in (ENERGY_PER_TOKEN, ENERGY_PER_REQUEST) and (len(sources) > 1 or sources <= {"none", "mixed"}):
        return False
    return all(_cost(table, point, cost) is not None for point in table.points)


def _cost(table: TaskTable, point: PlacedPoint, cost: Cost) -> Resampled | None:
    if cost.metric is LATENCY_P50:
        return table.resampling.latency(point.cell)
    if cost.metric in (ENERGY_PER_TOKEN, ENERGY_PER_REQUEST):
        return table.resampling.energy(point.cell, of_requests=cost.metric is ENERGY_PER_REQUEST)
    return table.resampling.layers(point.cell, table.run.manifest.model.num_layers)


def _quality(table: TaskTable, point: PlacedPoint, quality: str) -> Resampled | None:
    if quality == EXACT_PREFIX.name:
        full = table.full
        return None if full is None else table.resampling.mean(point.cell, exact_prefixes(point.cell, full.cell))
    return table.resampling.score(point.cell, quality, point.row.value(quality))
