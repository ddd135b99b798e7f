"""The hypervolume of a table's strategies as a table of text, for Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping

from harness.records.estimate import Estimate
from reports.figures.front_points import GAINS, areas
from reports.figures.task_table import TaskTable, task_tables
from reports.recorded import RecordedRun
from reports.summary.resampling import Hypervolume
from reports.tables.attribution_table import TextTable
from reports.tables.columns import MISSING

__all__ = ["NOTE", "hypervolume_tables"]

NOTE = (
    "Hypervolume: the most text kept (exact prefix) within a budget, averaged over budgets from 0 to full depth's "
    "time, or layers (0 where nothing fits). Alone: by the strategy's own operating points. Adds: what is lost without "
    "it. The full depth that costs are divided by spans none, and neither does what costs more. Brackets: 95 % "
    "bootstrap intervals."
)
_SHOWN = {"time": GAINS[0], "layers": GAINS[2]}


def hypervolume_tables(run: RecordedRun) -> list[tuple[str, TextTable]]:
    """Return (task, table) of a run whose text means something and that has more than full depth.

    Layers are left out where stop rules cut completions short: what a token costs says nothing of what they cost.
    """
    tables = []
    for table in task_tables(run):
        found = {name: areas(table, gain) for name, gain in _SHOWN.items()}  # chance decides no area, nor does energy
        volumes = {name: volume for name, volume in found.items() if volume is not None}
        if "time" in volumes:
            tables.append((table.task, _table(table, volumes)))
    return tables


def _table(table: TaskTable, volumes: Mapping[str, Hypervolume]) -> TextTable:
    header = ("strategy", *(f"{name},\n{what}" for name in volumes for what in ("alone", "adds")))
    beside = [point.row.strategy for point in table.points if point is not table.full]
    rows = [
        (
            strategy,
            *(
                _cell(shares.get(strategy))
                for volume in volumes.values()
                for shares in (volume.alone, volume.contribution)
            ),
        )
        for strategy in volumes["time"].alone
        if strategy in beside
    ]
    whole = ("all together", *(text for volume in volumes.values() for text in (_cell(volume.total), MISSING)))
    return TextTable("Dominated hypervolume of text kept against cost", header, (*rows, whole))


def _cell(share: Estimate | None) -> str:
    return MISSING if share is None else share.text("{:.3f}")  # a black box has no layers
