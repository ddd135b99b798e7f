"""The input of a metric: one operating point on one task, the full depths it may be held against, and its units.

A unit is what each prompt, or each block of prompts, cost or scored, named by the prompts in it, so that units of two
runs pair by their names. Costs that only a whole window has (requests back to back, energy, throughput) come by block,
everything else by prompt until :func:`by_block` adds up the prompts of a block. Repeats of a prompt belong to its unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TypeAlias

from harness.contracts.metrics import Against, Metric
from harness.records import Manifest, ModelRecord, SampleRecord, WindowRecord
from harness.records.estimate import Estimate, Interval, NoInterval
from reports.statistics.intervals import Pair, paired_ratio, pooled, ratio
from reports.summary.measured import Measured, full_depths

Units: TypeAlias = Mapping[frozenset[str], tuple[float, ...]]
"""Prompts of a unit → its row: totals (of what stands above and below the line of a rate), or one value per repeat."""


@dataclass(frozen=True, eq=False)
class Point:
    """An operating point as metrics see it.

    Attributes:
        cell: its finished samples and windows.
        cells: all operating points of the task, full depth first.
        manifest: of the run.
        idle: idle windows of the run that count.
        score_corpus: makes the scores of its completions together; not called when no sample finished.
    """

    cell: Measured
    cells: Sequence[Measured]
    manifest: Manifest
    idle: Sequence[WindowRecord] = ()
    score_corpus: Callable[[Measured], Mapping[str, float | None]] = field(default=lambda _: {})

    @property
    def full(self) -> Measured:
        """Full depth on the same task, the run's first: what tokens and scores are compared with."""
        return self.cells[0]

    @cached_property
    def own_full(self) -> Measured:
        """Full depth in the same weights format and with the same ``keep``: what costs are compared with."""
        return full_depths(self.cells)[self.cell.regime]

    @cached_property
    def fastest_full(self) -> Measured:
        """The fastest full depth of the same ``keep``, by whole requests, in a format that keeps the model's tokens.

        The first one where the run has no such format.
        """
        _, kept = self.cell.regime
        near = [cell for (_, keep), cell in full_depths(self.cells).items() if keep == kept]
        return self._fastest(near) or near[0]

    @cached_property
    def fastest_lossless(self) -> Measured | None:
        """The fastest lossless row of the same ``keep`` that text alone drafts for, chosen as :attr:`fastest_full` is.

        ``None`` where the run has none.
        """
        near = [
            cell
            for cell in self.cells
            if (point := cell.point).strategy == "full"
            and point.draft_sources
            and not (point.never_exits or point.stop or point.prompt_exit)
            and cell.regime[1] == self.cell.regime[1]
        ]
        return self._fastest(near)

    def keeps_tokens(self, cell: Measured) -> bool:
        """Whether an operating point's weights format keeps the tokens of the model as it was read."""
        return self.manifest.model.stored(cell.conditions.weights_format).keeps_tokens

    def _fastest(self, cells: Iterable[Measured]) -> Measured | None:
        near = list(filter(self.keeps_tokens, cells))

        def speed(cell: Measured) -> float:
            return paired_ratio(list(cell.block_pairs(near[0], Measured.request_s).values())) or 0.0

        return max(near, key=speed, default=None)

    def reference(self, against: Against) -> Measured | None:
        """Return the full depth that a metric is held against."""
        found: Measured | None = getattr(self, against)
        return found

    def can_have(self, metric: Metric) -> bool:
        """Whether a metric is defined here.

        What only the engine knows is missing of a black box, and every cost of a run that was not timed.
        """
        known = metric.black_box or self.cell.point.black_box is None
        return known and (self.manifest.timed or not metric.is_cost)

    @property
    def is_full(self) -> bool:
        """Whether it is the run's first full depth itself."""
        return self.cell is self.full

    @cached_property
    def is_exact(self) -> bool:
        """Whether its tokens are full depth's, asserted and not averaged: itself, or all of a lossless row."""
        if self.is_full or not self.cell.point.lossless:
            return self.is_full
        both = [key for key in self.cell.shared(self.full) if key[1] == 0]
        same = (self.cell.samples[key].token_ids == self.full.samples[key].token_ids for key in both)
        return bool(both) and all(same)

    def does_the_work_of(self, full: Measured) -> bool:
        """Whether every layer ran for every token, as at a full depth, and nothing was drafted or ended early.

        What it gains over that is chance or the harness, and no strategy's.
        """
        cell, layers = self.cell, self.model.num_layers
        here, there = cell.conditions, full.conditions
        return (
            (cell.regime, here.cached, here.batch_size) == (full.regime, there.cached, there.batch_size)
            and not (cell.point.black_box or cell.point.stop or cell.point.prompt_exit or cell.point.prefetch)
            and all(
                not one.drafts and one.finish_reason != "strategy" and set(cell.decoded_layers(one)) <= {layers}
                for one in self.samples
            )
        )

    @cached_property
    def model(self) -> ModelRecord:
        """The model as it ran, in the operating point's weights format."""
        return self.manifest.model.stored(self.cell.conditions.weights_format)

    @property
    def samples(self) -> Sequence[SampleRecord]:
        """Finished samples of every repeat."""
        return tuple(self.cell.samples.values())

    @property
    def windows(self) -> Sequence[WindowRecord]:
        """Its windows."""
        return tuple(self.cell.windows.values())

    @cached_property
    def corpus_scores(self) -> Mapping[str, float | None]:
        """Scores of all completions of the first repeat together, by name; those missing are means over samples."""
        return self.score_corpus(self.cell) if self.cell.scored else {}


def units_of(metric: Metric, point: Point) -> Units | None:
    """Return what a metric is made of, unit by unit: empty if it was not measured, ``None`` if it has none."""
    if not point.can_have(metric):
        return {}
    if metric.units is not None:
        units: Units = metric.units(point)
        return units
    if metric.of_sample is None:
        return None
    if metric.percentile is None:
        return rates(point.cell, metric.of_sample)
    found: dict[frozenset[str], list[float]] = {}
    for sample in point.samples:
        value = metric.of_sample(sample)
        if value is not None:
            found.setdefault(frozenset([sample.sample_id]), []).append(value)
    return {key: tuple(values) for key, values in found.items()}


def by_block(metric: Metric, units: Units, cell: Measured) -> Units:
    """Return units with those joined whose prompts share a block of an operating point."""
    keys = cell.by_block({next(iter(key)): key for key in units})
    return {frozenset[str]().union(*block): added(metric, [units[key] for key in block]) for block in keys}


def added(metric: Metric, rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Return the row of several units together: those of a percentile are strung together, those of a rate added up."""
    return tuple(chain(*rows)) if metric.percentile is not None else tuple(map(sum, zip(*rows, strict=True)))


def rates(cell: Measured, read: Callable[[SampleRecord], tuple[float, float] | float | None]) -> Units:
    """Return units by prompt."""
    rows = []
    for sample in cell.samples.values():
        found = read(sample)
        if found is not None:
            rows.append((frozenset([sample.sample_id]), found if isinstance(found, tuple) else (found, 1.0)))
    return _added(rows)


def tokens(cell: Measured) -> int | None:
    """Return the tokens of windows without a failed sample; ``None`` where a black box does not count its own."""
    counts = [window.tokens for window in cell.whole_windows]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def blocks(cell: Measured, cost: Callable[[WindowRecord], float | None], *, per_token: bool = False) -> Units:
    """Return a cost of whole windows, and the windows or tokens it bought; a window with a failed sample has none."""
    rows = []
    for number, members in cell.whole.items():
        window = cell.windows[number]
        spent, bought = cost(window), window.tokens if per_token else 1
        if spent is not None and bought is not None:
            rows.append((frozenset(sample.sample_id for sample in members), (spent, float(bought))))
    return _added(rows)


def joined(above: Units, below: Units) -> Units:
    """Return the units of a ratio of two rates."""
    return {key: (*row, *below[key]) for key, row in above.items() if key in below}


def over_blocks(
    cell: Measured,
    counted: Iterable[tuple[SampleRecord, Pair]],
    interval: Callable[[Sequence[Pair]], Interval | NoInterval],
) -> Estimate | None:
    """Return Σ baseline over Σ other of samples with its interval over their units; ``None`` of nothing."""
    units = pooled((cell.unit(sample), pair) for sample, pair in counted)
    value = ratio(sum(pair.baseline for pair in units), sum(pair.other for pair in units))
    return None if value is None else Estimate.of(value, interval(units), n=len(units))


def _added(rows: Iterable[tuple[frozenset[str], tuple[float, ...]]]) -> Units:
    found: dict[frozenset[str], tuple[float, ...]] = {}
    for key, row in rows:
        found[key] = tuple(map(sum, zip(found[key], row, strict=True))) if key in found else row
    return found
