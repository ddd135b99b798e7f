"""The input of a metric: one operating point on one task, and the full depths that it may be held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from harness.contracts.metrics import Against, Metric
from harness.records import Manifest, ModelRecord, SampleRecord, WindowRecord
from reports.statistics.intervals import paired_ratio
from reports.summary.measured import Measured, PromptTimes, full_depths


@dataclass(frozen=True, eq=False)
class Point:
    """An operating point as metrics see it.

    Attributes:
        cell: its finished samples and windows.
        cells: all operating points of the task, full depth first.
        manifest: of the run.
        idle: idle windows of the run that count.
        score_corpus: makes the scores of its completions together; not called when no sample finished.
        prompts: times of the cells' prompts, where they were made for other points already.
    """

    cell: Measured
    cells: Sequence[Measured]
    manifest: Manifest
    idle: Sequence[WindowRecord] = ()
    score_corpus: Callable[[Measured], Mapping[str, float | None]] = field(default=lambda _: {})
    prompts: PromptTimes | None = None

    @property
    def full(self) -> Measured:
        """Full depth on the same task, the run's first: what tokens and scores are compared with."""
        return self.cells[0]

    @cached_property
    def own_full(self) -> Measured:
        """Full depth in the same weights format: what costs are compared with."""
        return full_depths(self.cells)[self.cell.conditions.weights_format]

    @cached_property
    def fastest_full(self) -> Measured | None:
        """The fastest full depth, by whole requests, of the weights formats that keep the model's tokens.

        ``None`` where the run has no such format.
        """
        depths = full_depths(self.cells)
        near = [cell for name, cell in depths.items() if self.manifest.model.stored(name).keeps_tokens]
        return max(near, key=lambda cell: paired_ratio(cell.window_pairs(near[0])) or 0.0, default=None)

    @cached_property
    def prompt_times(self) -> PromptTimes:
        """Times of reading each prompt, pooled over the operating points that did the same work."""
        return self.prompts or PromptTimes(self.cells)

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
