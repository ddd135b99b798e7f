"""Data that the figures of one run and task share: points, intervals, name and the first half of a caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from harness.appearance.visible_text import one_line
from harness.records.summary import SummaryRow
from reports.figures.figure import slug
from reports.recorded import RecordedRun
from reports.statistics.intervals import MINIMUM_PAIRS
from reports.summary.measured import Measured
from reports.summary.resampling import Resampling
from reports.tables.result import ResultTable, is_candidate, split_tables

_LONGEST_NAME = 44


@dataclass(frozen=True, slots=True)
class PlacedPoint:
    """An operating point with what was measured of it.

    Attributes:
        letter: its letter in every table of the report.
        row: its summary.
        run: what it is of.
    """

    letter: str
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
    """One table of a run.

    Attributes:
        run: where it comes from.
        table: its rows, full depth first.
        points: those rows that finished a sample.
    """

    run: RecordedRun
    table: ResultTable
    points: tuple[PlacedPoint, ...]

    @cached_property
    def resampling(self) -> Resampling:
        """The bootstrap draws that all intervals of this table share."""
        return Resampling([point.cell for point in self.points])

    @property
    def task(self) -> str:
        """Its registered name."""
        return self.table.rows[0].task

    @property
    def full(self) -> PlacedPoint | None:
        """Full depth, the baseline; ``None`` where it finished nothing."""
        first = self.table.rows[0].operating_point
        return next((point for point in self.points if point.row.operating_point == first), None)

    @property
    def size(self) -> str:
        """How many samples, as a range where operating points differ: ``n = 24 samples``."""
        return self.table.size.partition(" ×")[0]

    @property
    def random_weights(self) -> bool:
        """Whether quality means nothing here."""
        return self.table.rows[0].weights == "random"

    @property
    def sensor(self) -> str:
        """Where full depth's energy comes from."""
        return self.table.rows[0].energy_source

    @property
    def blocks(self) -> int:
        """Blocks of samples that any operating point finished."""
        return len({window.block for point in self.points for window in point.cell.windows.values()})

    def stem(self, kind: str) -> str:
        """Return the name of a figure's files."""
        return f"{slug(self.run.name)}-{slug(self.task)}-{kind}"

    @property
    def provenance(self) -> str:
        """The run and how its intervals were made; two or three sentences."""
        row = self.table.rows[0]
        state = f" This run is not complete: {self.run.state}." if self.run.state else ""
        return (
            f"Run {self.run.name}: {row.task} ({row.protocol}; {row.source}), {self.table.size}; {row.model}, "
            f"{row.weights} weights, {self.table.numbers}, kv {self.table.policies}, batch {row.batch_size}; "
            f"{self.table.machine}.{state} {self.intervals}"
        )

    @property
    def intervals(self) -> str:
        """Meaning of the error bars."""
        if self.blocks < MINIMUM_PAIRS:
            return f"No intervals: {self.blocks} blocks of samples are too few."
        return f"Error bars: 95 % intervals over {self.blocks} blocks of samples."


def task_tables(run: RecordedRun) -> Iterator[TaskTable]:
    """Yield the tables of a run that have a finished sample."""
    for table in split_tables(run.summary):
        points = tuple(
            PlacedPoint(letter, row, run)
            for letter, row in zip(table.letters, table.rows, strict=True)
            if row.n and (row.task, row.operating_point) in run.finished_points
        )
        if points:
            yield TaskTable(run, table, points)


def shortened(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name for a legend, in one line; of a long one beginning and end."""
    line = one_line(name)
    if len(line) <= longest:
        return line
    half = (longest - 1) // 2
    return f"{''.join(islice(line, longest - 1 - half))}…{line[-half:]}"
