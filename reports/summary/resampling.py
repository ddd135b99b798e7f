"""Numbers of several operating points with one set of bootstrap draws, for figures that show them together.

Blocks of samples, those of one editor session together, are drawn with replacement, all operating points and all
repeats of a block together (Efron 1979). A point's value is always its table's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from harness.records.estimate import Estimate
from reports.statistics.intervals import draws, estimate_of
from reports.summary.measured import Measured

Terms = Iterable[tuple[int, float, float]]  # block, numerator, denominator

RESAMPLES = 1_000
_SAME = 1e-3  # a corpus score closer than this to the mean of its samples is that mean, rounded


class Resampling:
    """One task's blocks, drawn again and again."""

    def __init__(self, cells: Sequence[Measured], *, seed: int = 0) -> None:
        blocks = sorted({cell.units[window.block] for cell in cells for window in cell.windows.values()})
        self._place = {block: place for place, block in enumerate(blocks)}
        self._draws = draws(len(blocks), resamples=RESAMPLES, seed=seed) if blocks else np.zeros((RESAMPLES, 0))

    def score(self, cell: Measured, name: str, value: float | None) -> Estimate | None:
        """Return a score of the table with the interval of its samples' mean."""
        if value is None:
            return None
        scored = [(sample, score) for sample in cell.scored if (score := sample.scores.get(name)) is not None]
        found = self.share((cell.unit(sample), score, 1.0) for sample, score in scored)
        if found is None or len(scored) < len(cell.scored) or abs(found.value - value) > _SAME:
            return Estimate(value=value)
        return Estimate.of(value, found.interval)

    def mean(self, cell: Measured, values: Mapping[str, float]) -> Estimate | None:
        """Return the mean of numbers of samples of the first repeat, by sample id."""
        return self.share((cell.unit(cell.samples[key, 0]), value, 1.0) for key, value in values.items())

    def layers(self, cell: Measured, num_layers: int) -> Estimate | None:
        """Return the layers executed per decoded token as a share of full depth's."""

        def terms() -> Terms:
            for sample in cell.samples.values():
                layers = cell.decoded_layers(sample)
                yield cell.unit(sample), float(sum(layers)), float(num_layers * len(layers))

        return self.share(terms())

    def mean_by(self, terms: Iterable[tuple[Hashable, int, float]]) -> dict[Hashable, tuple[int, Estimate]]:
        """Return the mean of each group's values, with how many there are, from (group, block, value)."""
        groups: dict[Hashable, list[tuple[int, float, float]]] = defaultdict(list)
        for group, block, value in terms:
            groups[group].append((block, value, 1.0))
        made = {group: (len(members), self.share(members)) for group, members in groups.items()}
        return {group: (count, found) for group, (count, found) in made.items() if found is not None}

    def share(self, terms: Terms) -> Estimate | None:
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
        return estimate_of(values, len(seen))
