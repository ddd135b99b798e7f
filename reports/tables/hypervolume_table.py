"""The hypervolume of a table's strategies as a table of text, for Markdown and LaTeX."""

from __future__ import annotations

from reports.figures.front_points import COSTS, front_of
from reports.figures.task_table import TaskTable, task_tables
from reports.metrics.energy import ENERGY_PER_REQUEST, ENERGY_PER_TOKEN
from reports.recorded import RecordedRun
from reports.summary.hypervolume import Hypervolume, Share
from reports.summary.pareto import QUALITY
from reports.tables.attribution_table import TextTable
from reports.tables.columns import MISSING

__all__ = ["NOTE", "hypervolume_tables"]

NOTE = (
    "Hypervolume: the best edit similarity to be had within a budget, averaged over budgets from 0 to full depth's "
    "cost (0 where nothing fits). Alone: by the strategy's own operating points. Adds: what the front loses without "
    "it. Full depth itself spans none, and neither does what costs more. Brackets: 95 % bootstrap intervals."
)
_SHOWN = tuple(
    cost for cost in COSTS if cost.metric not in (ENERGY_PER_TOKEN, ENERGY_PER_REQUEST)
)  # an estimate decides nothing


def hypervolume_tables(run: RecordedRun) -> list[tuple[str, TextTable]]:
    """Return (task, table) of a run whose quality means something and that has more than full depth."""
    tables = []
    for table in task_tables(run):
        if table.random_weights or table.full is None or len(table.points) < 2:
            continue
        found = [front_of(table, cost, QUALITY).hypervolume for cost in _SHOWN]
        volumes = [volume for volume in found if volume is not None]
        if len(volumes) == len(_SHOWN):
            tables.append((table.task, _table(table, volumes)))
    return tables


def _table(table: TaskTable, volumes: list[Hypervolume]) -> TextTable:
    names = ("latency", "layers")
    header = ("strategy", *(f"{name},\n{what}" for name in names for what in ("alone", "adds")))
    strategies = [name for name in volumes[0].alone if name != (table.full.row.strategy if table.full else "")]
    rows = [
        (
            strategy,
            *(_cell(shares.get(strategy)) for volume in volumes for shares in (volume.alone, volume.contribution)),
        )
        for strategy in strategies
    ]
    whole = ("all together", *(text for volume in volumes for text in (_cell(volume.total), MISSING)))
    return TextTable("Dominated hypervolume of edit similarity against cost", header, (*rows, whole))


def _cell(share: Share | None) -> str:
    if share is None:  # a black box has no layers
        return MISSING
    text = f"{share.value:.3f}"
    return text if share.ci is None else f"{text} [{share.ci[0]:.3f}, {share.ci[1]:.3f}]"
