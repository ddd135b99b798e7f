"""The hypervolume of a table's strategies as a table of text, for Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping

from reports.figures.front_points import COSTS, front_of
from reports.figures.task_table import TaskTable, task_tables
from reports.recorded import RecordedRun
from reports.summary.hypervolume import Hypervolume, Share
from reports.summary.pareto import QUALITY, stops
from reports.tables.attribution_table import TextTable
from reports.tables.columns import MISSING

__all__ = ["NOTE", "hypervolume_tables"]

NOTE = (
    "Hypervolume: the best edit similarity to be had within a budget, averaged over budgets from 0 to full depth's "
    "cost (0 where nothing fits). Alone: by the strategy's own operating points. Adds: what the front loses without "
    "it. The full depth that costs are divided by spans none, and neither does what costs more. Brackets: 95 % "
    "bootstrap intervals."
)


def hypervolume_tables(run: RecordedRun) -> list[tuple[str, TextTable]]:
    """Return (task, table) of a run whose quality means something and that has more than full depth.

    Layers are left out where stop rules cut completions short: what a token costs says nothing of what they cost.
    """
    tables = []
    for table in task_tables(run):
        if table.random_weights or table.full is None or len(table.points) < 2:
            continue
        shown = ("latency",) if stops(table.table.rows) else ("latency", "layers")
        costs = [cost for cost in COSTS if cost.key in shown]  # no energy: an estimate decides nothing
        found = {cost.key: front_of(table, cost, QUALITY).hypervolume for cost in costs}
        volumes = {key: volume for key, volume in found.items() if volume is not None}
        if len(volumes) == len(costs):
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
        for strategy in volumes["latency"].alone
        if strategy in beside
    ]
    whole = ("all together", *(text for volume in volumes.values() for text in (_cell(volume.total), MISSING)))
    return TextTable("Dominated hypervolume of edit similarity against cost", header, (*rows, whole))


def _cell(share: Share | None) -> str:
    if share is None:  # a black box has no layers
        return MISSING
    text = f"{share.value:.3f}"
    return text if share.ci is None else f"{text} [{share.ci[0]:.3f}, {share.ci[1]:.3f}]"
