"""Numbers of several operating points with one set of bootstrap draws, for figures that show them together.

Blocks of samples are drawn with replacement, all operating points and all repeats of a block together (Efron 1979), so
that what is computed of several rows has an honest interval. A point's value is always its table's.

**The dominated hypervolume** is a whole front as one number (Zitzler and Thiele 1998; two dimensions, exact). Cost is a
share of full depth's; the reference point is quality 0 at full depth's cost, so that the number is the best quality to
be had within a budget, averaged over budgets from nothing to full depth's cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.records import SampleRecord
from harness.records.estimate import Estimate
from reports.statistics.intervals import MINIMUM_PAIRS, draws, estimate_of
from reports.summary.measured import Measured

Array = NDArray[np.float64]
Terms = Iterable[tuple[int, float, float]]  # block, numerator, denominator

RESAMPLES = 1_000
_SAME = 1e-3  # a corpus score closer than this to the mean of its samples is that mean, rounded


@dataclass(frozen=True, slots=True)
class Resampled:
    """A statistic with its bootstrap replicates, for what is computed of several."""

    estimate: Estimate
    replicates: Array


class Resampling:
    """One task's blocks, drawn again and again."""

    def __init__(self, cells: Sequence[Measured], *, seed: int = 0) -> None:
        blocks = sorted({window.block for cell in cells for window in cell.windows.values()})
        self._place = {block: place for place, block in enumerate(blocks)}
        self._draws = draws(len(blocks), resamples=RESAMPLES, seed=seed) if blocks else np.zeros((RESAMPLES, 0))

    def score(self, cell: Measured, name: str, value: float | None) -> Estimate | None:
        """Return a score of the table with the interval of its samples' mean."""
        if value is None:
            return None
        scored = [(sample, score) for sample in cell.scored if (score := sample.scores.get(name)) is not None]
        found = self.share((self._block(cell, sample), score, 1.0) for sample, score in scored)
        if found is None or len(scored) < len(cell.scored) or abs(found.estimate.value - value) > _SAME:
            return Estimate(value=value)
        return Estimate.of(value, found.estimate.interval)

    def mean(self, cell: Measured, values: Mapping[str, float]) -> Resampled | None:
        """Return the mean of numbers of samples of the first repeat, by sample id."""
        return self.share((self._block(cell, cell.samples[key, 0]), value, 1.0) for key, value in values.items())

    def layers(self, cell: Measured, num_layers: int) -> Resampled | None:
        """Return the layers executed per decoded token as a share of full depth's."""

        def terms() -> Terms:
            for sample in cell.samples.values():
                layers = cell.decoded_layers(sample)
                yield self._block(cell, sample), float(sum(layers)), float(num_layers * len(layers))

        return self.share(terms())

    def mean_by(self, terms: Iterable[tuple[Hashable, int, float]]) -> dict[Hashable, tuple[int, Estimate]]:
        """Return the mean of each group's values, with how many there are, from (group, block, value)."""
        groups: dict[Hashable, list[tuple[int, float, float]]] = defaultdict(list)
        for group, block, value in terms:
            groups[group].append((block, value, 1.0))
        made = {group: (len(members), self.share(members)) for group, members in groups.items()}
        return {group: (count, found.estimate) for group, (count, found) in made.items() if found is not None}

    def _block(self, cell: Measured, sample: SampleRecord) -> int:
        return cell.windows[sample.window].block

    def share(self, terms: Terms) -> Resampled | None:
        """Return total over total, of (block, numerator, denominator); ``None`` where nothing stands below the line."""
        sums = np.zeros((len(self._place), 2))
        seen = set()
        for block, above, below in terms:
            sums[self._place[block]] += (above, below)
            seen.add(block)
        if not sums.sum(0)[1]:
            return None
        drawn = np.vstack([sums.sum(0), self._draws @ sums])
        with np.errstate(divide="ignore", invalid="ignore"):
            values = drawn[:, 0] / drawn[:, 1]
        found = estimate_of(values, len(seen))
        return Resampled(found, values[1:] if found.interval else np.zeros(0))


@dataclass(frozen=True, slots=True)
class Candidate:
    """An operating point that one could deploy."""

    strategy: str
    cost: Resampled
    quality: Resampled


@dataclass(frozen=True, slots=True)
class Hypervolume:
    """A front's area, taken apart by strategy."""

    total: Estimate
    alone: Mapping[str, Estimate]
    contribution: Mapping[str, Estimate]


def hypervolumes(candidates: Sequence[Candidate], full: Resampled, blocks: int) -> Hypervolume:
    """Return the hypervolume of a table's operating points, in total and by strategy, with intervals."""
    owners = np.array([one.strategy for one in candidates])
    strategies = list(dict.fromkeys(owners.tolist()))
    costs = np.array([[one.cost.estimate.value for one in candidates]]) / full.estimate.value
    qualities = np.array([[one.quality.estimate.value for one in candidates]])
    drawn = [each.replicates for one in candidates for each in (one.cost, one.quality)]
    if blocks >= MINIMUM_PAIRS and all(len(replicates) for replicates in (*drawn, full.replicates)):
        costs = np.vstack([costs, np.stack(drawn[0::2], axis=1) / full.replicates[:, None]])
        qualities = np.vstack([qualities, np.stack(drawn[1::2], axis=1)])

    total = _areas(costs, qualities)  # the first is the sample itself, the others are replicates
    alone, contribution = {}, {}
    for strategy in strategies:
        own = owners == strategy
        alone[strategy] = estimate_of(_areas(costs[:, own], qualities[:, own]), blocks)
        without = _areas(costs[:, ~own], qualities[:, ~own])
        contribution[strategy] = estimate_of(np.maximum(total - without, 0.0), blocks)
    return Hypervolume(estimate_of(total, blocks), alone, contribution)


def _areas(costs: Array, qualities: Array) -> Array:
    """Return the area that each table of points dominates up to (1, 0), ``[tables, points]`` → ``[tables]``."""
    order = np.argsort(costs, axis=1)
    sorted_costs = np.minimum(np.take_along_axis(costs, order, 1), 1.0)
    best = np.maximum.accumulate(np.take_along_axis(qualities, order, 1), axis=1)
    widths = np.diff(sorted_costs, axis=1, append=1.0)
    found: Array = (widths * np.maximum(best, 0)).sum(1)
    return found
