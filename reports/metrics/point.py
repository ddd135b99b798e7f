"""What a metric is computed from: one operating point on one task, and what it may be held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from harness.records import Manifest, ModelRecord, SampleRecord, WindowRecord
from reports.summary.measured import Measured

__all__ = ["Point"]


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
        """Full depth on the same task."""
        return self.cells[0]

    @property
    def is_full(self) -> bool:
        """Whether it is full depth itself."""
        return self.cell is self.full

    @property
    def model(self) -> ModelRecord:
        """The model as it ran."""
        return self.manifest.model

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
