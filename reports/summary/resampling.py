"""Numbers of several operating points with one set of bootstrap draws, for figures that show them together.

Blocks of samples are drawn with replacement, all operating points and all repeats of a block together (Efron 1979), so
that a replicate is one whole table and what is computed of several rows (a front, its hypervolume) has an honest
interval. A point's value is always its table's; an operating point that finished fewer blocks than another is resampled
over its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.records import SampleRecord
from reports.statistics.intervals import MINIMUM_PAIRS, draws, replicate_interval
from reports.summary.energy import total
from reports.summary.measured import Measured

__all__ = ["Resampled", "Resampling"]

Array = NDArray[np.float64]
Terms = Iterable[tuple[int, float, float]]  # block, numerator, denominator

RESAMPLES = 1_000
_CHUNK = 2_000_000  # resampled values in use at once
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
        found = self._ratio((self._block(cell, sample), score, 1.0) for sample, score in scored)
        if found is None or len(scored) < len(cell.scored) or abs(found.value - value) > _SAME:
            return Resampled(value, None, np.zeros(0))
        return Resampled(value, found.ci, found.replicates)

    def mean(self, cell: Measured, values: Mapping[str, float]) -> Resampled | None:
        """Return the mean of numbers of samples of the first repeat, by sample id."""
        return self._ratio((self._block(cell, cell.samples[key, 0]), value, 1.0) for key, value in values.items())

    def layers(self, cell: Measured, num_layers: int) -> Resampled | None:
        """Return the layers executed per decoded token as a share of full depth's."""

        def terms() -> Terms:
            for sample in cell.samples.values():
                layers = cell.decoded_layers(sample)
                yield self._block(cell, sample), float(sum(layers)), float(num_layers * len(layers))

        return self._ratio(terms())

    def energy(self, cell: Measured, *, of_requests: bool = False) -> Resampled | None:
        """Return joules per generated token or request; ``None`` unless all windows have a reading of one source."""
        if total(cell.windows.values())[1] is None:
            return None
        read = [(cell.windows[number], samples) for number, samples in cell.whole.items()]
        counts = [len(samples) if of_requests else window.tokens for window, samples in read]
        terms = [
            (window.block, window.energy_j, float(count))
            for (window, _), count in zip(read, counts, strict=True)
            if window.energy_j is not None and count is not None
        ]
        return self._ratio(terms) if len(terms) == len(read) else None

    def latency(self, cell: Measured) -> Resampled | None:
        """Return the median latency of a request, seconds."""
        return self.median(cell, lambda sample: sample.latency_s)

    def median(self, cell: Measured, read: Callable[[SampleRecord], float | None]) -> Resampled | None:
        """Return the median over samples, all repeats, of what ``read`` finds in one."""
        pairs = [(self._block(cell, s), v) for s in cell.samples.values() if (v := read(s)) is not None]
        if not pairs:
            return None
        pairs.sort(key=lambda pair: pair[1])
        places, values = np.array([self._place[block] for block, _ in pairs]), np.array([value for _, value in pairs])
        value, blocks = float(np.median(values)), len(set(places.tolist()))
        if blocks < MINIMUM_PAIRS:
            return Resampled(value, None, np.zeros(0))
        step = max(1, _CHUNK // len(values))
        parts = [_medians(values, self._draws[at : at + step, places]) for at in range(0, RESAMPLES, step)]
        replicates = np.concatenate(parts)
        return Resampled(value, replicate_interval(replicates, blocks), replicates)

    def mean_by(self, terms: Iterable[tuple[Hashable, int, float]]) -> dict[Hashable, tuple[int, Resampled]]:
        """Return the mean of each group's values, with how many there are, from (group, block, value)."""
        groups: dict[Hashable, list[tuple[int, float, float]]] = defaultdict(list)
        for group, block, value in terms:
            groups[group].append((block, value, 1.0))
        return {group: (len(members), found) for group, members in groups.items() if (found := self._ratio(members))}

    def _block(self, cell: Measured, sample: SampleRecord) -> int:
        return cell.windows[sample.window].block

    def _ratio(self, terms: Terms) -> Resampled | None:
        """Return total over total; ``None`` where nothing stands below the line."""
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


def _medians(values: Array, counts: Array) -> Array:
    """Return the median of sorted values that were drawn ``counts`` times, ``[resamples, values]``; NaN of none."""
    total = counts.sum(1)
    reached = np.cumsum(counts, axis=1)
    low = (reached > np.floor((total - 1) / 2)[:, None]).argmax(1)
    high = (reached > np.ceil((total - 1) / 2)[:, None]).argmax(1)
    middle: Array = (values[low] + values[high]) / 2
    return np.where(total > 0, middle, np.nan)
