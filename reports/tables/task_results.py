"""One table per task of all runs together, for a paper and for the front page of a report.

Rows of different runs stand in groups of their own: they share columns and units, and every comparison in a row is with
full depth of its own run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.records.summary import SummaryRow
from reports.metrics.energy import ENERGY_PER_TOKEN
from reports.recorded import RecordedRun
from reports.tables.columns import Column, columns_of, headline_columns
from reports.tables.result import ResultTable, is_candidate, split_tables

__all__ = ["Group", "TaskResults", "task_results"]


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one run that may be compared with each other.

    Attributes:
        name: of the run in this report.
        table: its rows, full depth first.
        state: what the run lacks to be complete; empty where it is.
    """

    name: str
    table: ResultTable
    state: str

    @property
    def heading(self) -> str:
        """Run, model and size in one line."""
        row = self.table.rows[0]
        return f"{self.name}: {row.model}, {row.weights} weights, {self.table.numbers}, {self.table.size}"

    @property
    def facts(self) -> str:
        """What the rows were measured on, in sentences."""
        labelled = [line.partition(" ") for line in self.table.subheadings]
        said = [f"{label.capitalize()}: {text.strip()}." for label, _, text in labelled]
        return " ".join([f"{self.name} is not complete: {self.state}."] * bool(self.state) + said)


@dataclass(frozen=True, slots=True)
class TaskResults:
    """What all runs say of one task and protocol.

    Attributes:
        task, protocol: registered names.
        groups: at least one.
        columns: filled, each with a cell per row of all groups.
    """

    task: str
    protocol: str
    groups: tuple[Group, ...]
    columns: tuple[Column, ...]

    @property
    def rows(self) -> tuple[SummaryRow, ...]:
        """The rows of all groups, in the columns' order."""
        return tuple(row for group in self.groups for row in group.table.rows)

    @property
    def title(self) -> str:
        """What the table shows; fewer than 40 words."""
        runs = len({group.name for group in self.groups})
        size = f"{runs} runs" if runs > 1 else self.groups[0].table.size
        return (
            f"Quality and cost on {self.task} ({self.protocol}), {size}. Speed-ups are over full depth of the same run."
        )

    @property
    def notes(self) -> Iterator[str]:
        """What the marks and numbers mean, and what was measured on what."""
        if any(row.pareto for row in self.rows):
            yield "● on the Pareto front of its run: exact prefix against speed-up."
        if not all(map(is_candidate, self.rows)):
            yield "◇ an upper bound, not a candidate."
        yield "* differs from full depth (Holm-corrected p ≤ 0.05). Brackets: 95 % intervals."
        if any("[too few]" in cell for column in self.columns for cell in column.cells):
            yield "[too few]: too few blocks or samples for an interval."
        if any(row.value(ENERGY_PER_TOKEN) is not None and not row.energy_measured for row in self.rows):
            yield "Energy that no sensor read is an estimate and decides no ranking."
        sources = {row.energy_source for row in self.rows if row.value(ENERGY_PER_TOKEN) is not None}
        for group in self.groups:
            named = f"{group.name}. " if len(self.groups) > 1 and not group.state else ""
            energy = f" Energy: {group.table.rows[0].energy_source}." if len(sources) > 1 else ""
            yield f"{named}{group.facts}{energy}"


def task_results(runs: Sequence[tuple[str, RecordedRun]]) -> list[TaskResults]:
    """Return one table per task and protocol that some run finished a sample of, in order of first appearance.

    Args:
        runs: each with its name in the report.
    """
    found: dict[tuple[str, str], list[Group]] = {}
    for name, run in runs:
        for table in split_tables(run.summary):
            if any(row.n for row in table.rows):
                key = (table.rows[0].task, table.rows[0].protocol)
                found.setdefault(key, []).append(Group(name, table, run.state))
    return [TaskResults(*key, tuple(groups), tuple(_columns(groups))) for key, groups in found.items()]


def _columns(groups: Sequence[Group]) -> Iterator[Column]:
    """Yield the columns of the first table of a report; what all rows of a group share is among its facts."""
    shared = {"n", "errors"} if not any(group.table.uneven for group in groups) else set()
    together = ResultTable(tuple(row for group in groups for row in group.table.rows), "")
    for column in headline_columns(together, columns_of(together)):
        if column.key not in shared and (column.key != "kv" or len(set(column.cells)) > 1):
            yield column
