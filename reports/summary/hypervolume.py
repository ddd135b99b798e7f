"""The dominated hypervolume: a whole Pareto front as one number, and what each strategy adds to it.

Zitzler and Thiele (1998), in two dimensions and exact. Cost is a share of full depth's; the reference point (the nadir)
is quality 0 at full depth's cost, so that the number is the best quality to be had within a budget, averaged over
budgets from nothing to full depth's cost, 0 where nothing fits. It is 1 for perfect completions that cost nothing and 0
where nothing is cheaper than full depth: full depth itself spans no area, and neither does what costs more. It rewards
a low cost as much as a high quality, which is one way of weighing them and not the only one; the front itself is the
result, this number its summary.

Bounds (the oracle) are no candidates and never counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.statistics.intervals import MINIMUM_PAIRS, replicate_interval
from reports.summary.resampling import Resampled

__all__ = ["Candidate", "Hypervolume", "Share", "hypervolume", "hypervolumes"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An operating point that one could deploy.

    Attributes:
        strategy: registered name.
        cost: in any unit, the same for all.
        quality: 0…1, more is better.
    """

    strategy: str
    cost: Resampled
    quality: Resampled


@dataclass(frozen=True, slots=True)
class Share:
    """An area, 0…1, with its 95 % interval; ``None`` where some operating point has none."""

    value: float
    ci: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Hypervolume:
    """A front's area, taken apart by strategy.

    Attributes:
        total: of all operating points together.
        alone: strategy → area of its own operating points.
        contribution: strategy → what is lost without it. What two strategies cover both counts for neither.
    """

    total: Share
    alone: Mapping[str, Share]
    contribution: Mapping[str, Share]


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float] = (1.0, 0.0)) -> float:
    """Return the area that points dominate, up to a reference point; exact.

    Args:
        points: (cost, quality), in any order. Those not better than the reference in both span nothing.
        reference: the worst cost and quality that count.
    """
    table = np.array([points], dtype=float).reshape(1, -1, 2)
    return float(_areas(table[..., 0], table[..., 1], reference)[0])


def hypervolumes(candidates: Sequence[Candidate], full: Resampled, blocks: int) -> Hypervolume:
    """Return the hypervolume of a table's operating points, in total and by strategy, with intervals.

    Args:
        candidates: full depth may be among them.
        full: full depth's cost, which costs are divided by.
        blocks: how many were drawn; few have no interval.
    """
    owners = np.array([one.strategy for one in candidates])
    strategies = list(dict.fromkeys(owners.tolist()))
    costs = np.array([[one.cost.value for one in candidates]]) / full.value
    qualities = np.array([[one.quality.value for one in candidates]])
    drawn = [estimate.replicates for one in candidates for estimate in (one.cost, one.quality)]
    if blocks >= MINIMUM_PAIRS and all(len(replicates) for replicates in (*drawn, full.replicates)):
        costs = np.vstack([costs, np.stack(drawn[0::2], axis=1) / full.replicates[:, None]])
        qualities = np.vstack([qualities, np.stack(drawn[1::2], axis=1)])

    def share(areas: Array) -> Share:  # the first is the sample itself, the others are replicates
        return Share(float(areas[0]), replicate_interval(areas[1:], blocks) if len(areas) > 1 else None)

    total = _areas(costs, qualities)
    alone, contribution = {}, {}
    for strategy in strategies:
        own = owners == strategy
        alone[strategy] = share(_areas(costs[:, own], qualities[:, own]))
        contribution[strategy] = share(np.maximum(total - _areas(costs[:, ~own], qualities[:, ~own]), 0.0))
    return Hypervolume(share(total), alone, contribution)


def _areas(costs: Array, qualities: Array, reference: tuple[float, float] = (1.0, 0.0)) -> Array:
    """Return the area under the best quality so far of each table of points, ``[tables, points]`` → ``[tables]``."""
    worst_cost, worst_quality = reference
    order = np.argsort(costs, axis=1)
    sorted_costs = np.minimum(np.take_along_axis(costs, order, 1), worst_cost)
    best = np.maximum.accumulate(np.take_along_axis(qualities, order, 1), axis=1)
    widths = np.diff(sorted_costs, axis=1, append=worst_cost)
    found: Array = (widths * np.maximum(best - worst_quality, 0)).sum(1)
    return found
