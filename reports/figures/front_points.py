"""The points of a table by what is gained and text kept, with intervals; which are on the front, and its area."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.contracts import Metric
from harness.records.estimate import Estimate, Interval
from reports.figures.task_table import PlacedPoint, TaskTable
from reports.metrics.depth import LAYERS_SKIPPED
from reports.metrics.energy import ENERGY_PER_TOKEN
from reports.metrics.faithfulness import exact_prefixes
from reports.metrics.speedups import ENERGY_RATIO, ENERGY_RATIO_OVER_FASTEST, SPEEDUP, SPEEDUP_OVER_FASTEST
from reports.summary.measured import PromptTimes
from reports.summary.pareto import TEXT_KEPT, choose_gain, coordinates, edge, on_front
from reports.summary.resampling import RESAMPLES, Candidate, Hypervolume, Resampled, hypervolumes


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain of an operating point, as an axis.

    Attributes:
        key: part of a file's name.
        title: what it is, in a caption.
        metric: as tables have it; where rows differ in their weights format, what restates it over the fastest.
    """

    key: str
    title: str
    metric: Metric


GAINS = (
    Gain(SPEEDUP.name, "speed-up of whole requests", SPEEDUP),
    Gain("energy", "energy ratio", ENERGY_RATIO),
    Gain("layers", "layers skipped", LAYERS_SKIPPED),
)
_OVER_FASTEST: Mapping[Metric, Metric] = {ENERGY_RATIO: ENERGY_RATIO_OVER_FASTEST}


@dataclass(frozen=True, slots=True)
class Front:
    """The points of one table, placed.

    Attributes:
        gain: what is on the horizontal axis.
        points: each with (gain, text kept) and the intervals of both, where it has them.
        on_front: flags, in their order; bounds are never on it. edge: those that no other beats, told or not.
    """

    gain: Metric
    points: tuple[tuple[PlacedPoint, tuple[float, float], tuple[Interval | None, Interval | None]], ...]
    on_front: tuple[bool, ...]
    edge: tuple[bool, ...]


def front_of(table: TaskTable, gain: Gain) -> Front | None:
    """Place the points of a table on two axes, as its rows have them; those that lack a coordinate are left out.

    ``None`` where a front means nothing: of random weights, of weights formats without a common full depth, of fewer
    than two points, of energy that no sensor measured, and of layers where stop rules cut completions short.
    """
    rows = table.table.rows
    metric = choose_gain(rows)
    if metric is None or table.full is None:
        return None
    if gain.metric is not SPEEDUP:
        several = metric is SPEEDUP_OVER_FASTEST
        metric = _OVER_FASTEST.get(gain.metric, gain.metric) if several else gain.metric
    if gain.metric is ENERGY_RATIO and not _by_one_sensor(table):
        return None
    if gain.metric is LAYERS_SKIPPED and any(row.stop for row in rows):
        return None
    placed = [
        (point, found, _intervals(point, metric))
        for point in table.points
        if (found := coordinates(point.row, metric)) is not None
    ]
    if len(placed) < 2:
        return None
    shown = [point.row for point, _, _ in placed]
    return Front(metric, tuple(placed), tuple(on_front(shown, metric)), tuple(edge(shown, metric)))


def areas(table: TaskTable, gain: Gain) -> Hypervolume | None:
    """Return the hypervolume of a table's candidates: of text kept against time or layers as a share of full depth's.

    ``None`` where there is no such front, or full depth was not measured.
    """
    if front_of(table, gain) is None or table.full is None:
        return None
    prompts = PromptTimes([point.cell for point in table.points])
    candidates = [
        Candidate(point.row.strategy, cost, kept)
        for point in table.points
        if not point.bound and (cost := _cost(table, point, gain, prompts)) and (kept := _kept(table, point))
    ]
    itself = Resampled(Estimate(value=1.0, low=1.0, high=1.0), np.ones(RESAMPLES))
    return hypervolumes(candidates, itself, table.blocks)


def _by_one_sensor(table: TaskTable) -> bool:
    rows = [point.row for point in table.points]
    sources = {row.energy_source for row in rows}
    return len(sources) == 1 and all(row.energy_measured and row.value(ENERGY_PER_TOKEN) is not None for row in rows)


def _intervals(point: PlacedPoint, metric: Metric) -> tuple[Interval | None, Interval | None]:
    def of(one: Metric) -> Interval | None:
        found = point.row.estimate(one)
        return None if found is None else found.interval

    return of(metric), of(TEXT_KEPT)


def _cost(table: TaskTable, point: PlacedPoint, gain: Gain, prompts: PromptTimes) -> Resampled | None:
    """The cost of an operating point, as a share of full depth's."""
    if gain.metric is LAYERS_SKIPPED:
        return table.resampling.layers(point.cell, table.run.manifest.model.num_layers)
    seen = table.run.point(point.row.task, point.row.operating_point)
    full = seen.fastest_full if choose_gain(table.table.rows) is SPEEDUP_OVER_FASTEST else seen.own_full
    if full is None:
        return None
    pairs = seen.cell.block_pairs(full, prompts.request_s)
    return table.resampling.share((block, pair.other, pair.baseline) for block, pair in pairs.items())


def _kept(table: TaskTable, point: PlacedPoint) -> Resampled | None:
    full = table.full
    return None if full is None else table.resampling.mean(point.cell, exact_prefixes(point.cell, full.cell))
