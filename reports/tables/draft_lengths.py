"""What longer drafts bring, of operating points that a run compares at several: a table of text, and its families."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace

from harness.records.summary import SummaryRow
from reports.metrics.drafts import ACCEPTANCE, DRAFTED, LAYERS_READ, TOKENS_PER_VERIFICATION
from reports.metrics.speedups import DECODE_SPEEDUP
from reports.tables.attribution_table import TextTable
from reports.tables.columns import columns_of
from reports.tables.result import ResultTable

__all__ = ["draft_families", "draft_length_table", "without_intervals"]

_SHOWN = (TOKENS_PER_VERIFICATION, ACCEPTANCE, DRAFTED, LAYERS_READ, DECODE_SPEEDUP)


def draft_families(rows: Sequence[SummaryRow]) -> dict[str, list[int]]:
    """Return the rows that differ in the longest draft alone: their places, shortest first, by a name for them."""
    groups: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        if row.draft_max is not None:
            options = json.dumps(row.options, sort_keys=True, default=str)
            groups.setdefault((row.strategy, options, row.decode, row.kv, row.weights_format, row.stop), []).append(
                place
            )
    several = [places for places in groups.values() if len({rows[place].draft_max for place in places}) > 1]
    found = {}
    for places in several:
        first = rows[places[0]]
        name = first.operating_point.replace(f"@draft={first.draft_max}", "")
        found[name] = sorted(places, key=lambda place: rows[place].draft_max or 0)
    return found


def draft_length_table(table: ResultTable) -> TextTable | None:
    """Return a line per operating point and longest draft; ``None`` where no two differ in it alone."""
    families, columns = draft_families(table.rows), columns_of(table)
    shown = [column for metric in _SHOWN if (column := columns.get(metric.name)) is not None and not column.empty]
    if not families or not shown:
        return None
    return TextTable(
        "What longer drafts bring",
        ("operating point", "longest\ndraft", *(column.header.replace(" speed", "\nspeed") for column in shown)),
        tuple(
            (name, str(table.rows[place].draft_max), *(column.cells[place] for column in shown))
            for name, places in families.items()
            for place in places
        ),
    )


def without_intervals(table: TextTable) -> TextTable:
    """Return a table without its intervals, for narrow screens; the files have them."""
    return replace(table, rows=tuple(tuple(cell.partition(" [")[0] for cell in row) for row in table.rows))
