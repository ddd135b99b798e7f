"""Data that the figures of one run and task share: points, intervals, name and the first half of a caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from harness.records.summary import SummaryRow
from reports.figures.drawing import slug
from reports.recorded import RecordedRun
from reports.statistics.intervals import MINIMUM_PAIRS
from reports.summary.measured import Measured
from reports.summary.resampling import Resampling
from reports.tables.result import ResultTable, is_candidate, split_tables


@dataclass(frozen=True, slots=True)
class PlacedPoint:
    """An operating point with what was measured of it."""

    row: SummaryRow
    run: RecordedRun

    @property
    def cell(self) -> Measured:
        """Its records."""
        return self.run.cells[self.row.task, self.row.operating_point]

    @property
    def bound(self) -> bool:
        """Whether it knows the answer, and is therefore no candidate."""
        return not is_candidate(self.row)


@dataclass(frozen=True)
class TaskTable:
    """One table of a run."""

    run: RecordedRun
    table: ResultTable
    points: tuple[PlacedPoint, ...]

    @cached_property
    def resampling(self) -> Resampling:
        """The bootstrap draws that all intervals of this table share."""
        return Resampling([point.cell for point in self.points])

    @property
    def first(self) -> SummaryRow:
        """The row of full depth, whether or not it finished anything."""
        return self.table.rows[0]

    @property
    def full(self) -> PlacedPoint | None:
        """Full depth, the baseline; ``None`` where it finished nothing."""
        name = self.first.operating_point
        return next((point for point in self.points if point.row.operating_point == name), None)

    @property
    def size(self) -> str:
        """How many samples, as a range where operating points differ: ``n = 24 samples``."""
        return self.table.size.partition(" ×")[0]

    @property
    def random_weights(self) -> bool:
        """Whether quality means nothing here."""
        return self.first.weights == "random"

    @property
    def blocks(self) -> int:
        """Blocks of samples that any operating point finished."""
        return len({window.block for point in self.points for window in point.cell.windows.values()})

    def stem(self, kind: str) -> str:
        """Return the name of a figure's files."""
        return f"{slug(self.run.name)}-{slug(self.first.task)}-{kind}"

    @property
    def provenance(self) -> str:
        """The run and how its intervals were made; two or three sentences."""
        row, blocks = self.first, self.blocks
        state = f" This run is not complete: {self.run.state}." if self.run.state else ""
        intervals = (
            f"No intervals: {blocks} blocks of samples are too few."
            if blocks < MINIMUM_PAIRS
            else f"Error bars: 95 % intervals over {blocks} blocks of samples."
        )
        return (
            f"Run {self.run.name}: {row.task} ({row.protocol}; {row.source}), {self.table.size}; {row.model}, "
            f"{row.weights} weights, {self.table.numbers}, kv {self.table.policies}, batch {row.batch_size}; "
            f"{self.table.machine}.{state} {intervals}"
        )


def task_tables(run: RecordedRun) -> Iterator[TaskTable]:
    """Yield the tables of a run that have a finished sample."""
    for table in split_tables(run.summary):
        points = tuple(
            PlacedPoint(row, run)
            for row in table.rows
            if row.n and (row.task, row.operating_point) in run.finished_points
        )
        if points:
            yield TaskTable(run, table, points)
