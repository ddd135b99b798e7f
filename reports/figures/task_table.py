"""Data that the figures of one run and task share: rows, records, intervals, names and the first half of a caption."""

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
from reports.tables.result import ResultTable, split_tables


@dataclass(frozen=True)
class TaskTable:
    """One table of a run, and those of its rows that finished a sample."""

    run: RecordedRun
    table: ResultTable
    rows: tuple[SummaryRow, ...]

    def cell(self, row: SummaryRow) -> Measured:
        """Return the records of a row."""
        return self.run.cells[row.task, row.operating_point]

    @cached_property
    def resampling(self) -> Resampling:
        """The bootstrap draws that all intervals of this table share."""
        return Resampling([self.cell(row) for row in self.rows])

    @property
    def first(self) -> SummaryRow:
        """The row of full depth, whether or not it finished anything."""
        return self.table.rows[0]

    @property
    def full(self) -> SummaryRow | None:
        """Full depth, the baseline; ``None`` where it finished nothing."""
        return self.first if self.first in self.rows else None

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
        """Blocks of samples that any operating point finished, those of one editor session counted once."""
        cells = [self.cell(row) for row in self.rows]
        return len({cell.units[window.block] for cell in cells for window in cell.windows.values()})

    def stem(self, kind: str) -> str:
        """Return the name of a figure's files."""
        return f"{slug(self.run.name)}-{slug(self.first.task)}-{kind}"

    @property
    def provenance(self) -> str:
        """The run and how its intervals were made; two or three sentences."""
        row, table, blocks = self.first, self.table, self.blocks
        state = f" This run is not complete: {self.run.state}." if self.run.state else ""
        state += " Most windows were disturbed, so that no ratio is told." if table.disturbed else ""
        few = f"No intervals: {blocks} blocks of samples are too few."
        return (
            f"Run {self.run.name}: {row.task} ({row.protocol}; {row.source}), {table.size}; {row.model}, {row.weights} "
            f"weights, {table.numbers}, kv {table.policies}, batch {row.batch_size}; {table.machine}.{state} "
            f"{few if blocks < MINIMUM_PAIRS else f'Error bars: 95 % intervals over {blocks} blocks of samples.'}"
        )


def task_tables(run: RecordedRun) -> Iterator[TaskTable]:
    """Yield the tables of a run that have a finished sample."""
    for table in split_tables(run.summary):
        rows = [row for row in table.rows if row.n and (row.task, row.operating_point) in run.finished_points]
        if rows:
            yield TaskTable(run, table, tuple(rows))
