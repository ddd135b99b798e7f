"""Numbers of several operating points with one set of bootstrap draws, for figures that show them together.

Blocks of samples are drawn with replacement, all operating points and all repeats of a block together (Efron 1979), so
that a replicate is one whole table and what is computed of several rows (a front, its hypervolume) has an honest
interval. A point's value is always its table's; an operating point that finished fewer blocks than another is resampled
over its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.records import SampleRecord
from reports.statistics.intervals import draws, replicate_interval
from reports.summary.measured import Measured

__all__ = ["RESAMPLES", "Resampled", "Resampling"]

Array = NDArray[np.float64]
Terms = Iterable[tuple[int, float, float]]  # block, numerator, denominator

RESAMPLES = 1_000
_SAME = 1e-3  # a corpus score closer than this to the mean of its samples is that mean, rounded


@dataclass(frozen=True, slots=True)
class Resampled:
    """A number with its bootstrap replicates.

    Attributes:
        value: of the sample itself.
        ci: 95 % interval; ``None`` below ``MINIMUM_PAIRS`` blocks, or where no replicates can be made.
        replicates: of :class:`Resampling`'s draws, the same draws for every estimate; empty without an interval.
    """

    value: float
    ci: tuple[float, float] | None
    replicates: Array


class Resampling:
    """One task's blocks, drawn again and again.

    Args:
        cells: operating points of one task, full depth first.
        seed: decides the draws, so that a report made twice says the same.
    """

    def __init__(self, cells: Sequence[Measured], *, seed: int = 0) -> None:
        blocks = sorted({window.block for cell in cells for window in cell.windows.values()})
        self._place = {block: place for place, block in enumerate(blocks)}
        self._draws = draws(len(blocks), resamples=RESAMPLES, seed=seed) if blocks else np.zeros((RESAMPLES, 0))

    def score(self, cell: Measured, name: str, value: float | None) -> Resampled | None:
        """Return a score of the table with the interval of its samples' mean.

        Args:
            cell: the operating point.
            name: of the score.
            value: the table's. A corpus score that is no mean of samples keeps its value and has no interval.
        """
        if value is None:
            return None
        scored = [(sample, score) for sample in cell.scored if (score := sample.scores.get(name)) is not None]
        found = self.share((self._block(cell, sample), score, 1.0) for sample, score in scored)
        if found is None or len(scored) < len(cell.scored) or abs(found.value - value) > _SAME:
            return Resampled(value, None, np.zeros(0))
        return Resampled(value, found.ci, found.replicates)

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

    def mean_by(self, terms: Iterable[tuple[Hashable, int, float]]) -> dict[Hashable, tuple[int, Resampled]]:
        """Return the mean of each group's values, with how many there are, from (group, block, value)."""
        groups: dict[Hashable, list[tuple[int, float, float]]] = defaultdict(list)
        for group, block, value in terms:
            groups[group].append((block, value, 1.0))
        return {group: (len(members), found) for group, members in groups.items() if (found := self.share(members))}

    def _block(self, cell: Measured, sample: SampleRecord) -> int:
        return cell.windows[sample.window].block

    def share(self, terms: Terms) -> Resampled | None:
        """Return total over total, of (block, numerator, denominator); ``None`` where nothing stands below the line."""
        sums = np.zeros((len(self._place), 2))
        seen = set()
        for block, above, below in terms:
            sums[self._place[block]] += (above, below)
            seen.add(block)
        above, below = sums.sum(0)
        if not below:
            return None
        drawn = self._draws @ sums
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates = drawn[:, 0] / drawn[:, 1]
        ci = replicate_interval(replicates, len(seen))
        return Resampled(float(above / below), ci, replicates if ci else np.zeros(0))
