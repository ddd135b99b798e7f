"""Numbers that only a package that is not installed here can make again: what was recorded of them is kept."""

from __future__ import annotations

from harness.records.summary import Summary, SummaryRow
from reports.metrics.vocabulary import metrics_of

__all__ = ["with_recorded"]


def with_recorded(summary: Summary, recorded: Summary) -> Summary:
    """Return a summary with the metrics of an earlier one that nothing installed here explains, and a note of them.

    Args:
        summary: made of the records, here.
        recorded: as it lies in the run directory. Rows that rest on other samples by now are left out.
    """
    known = {metric.name for metric in metrics_of(summary.rows)}
    earlier = {(row.task, row.operating_point): row for row in recorded.rows}
    kept: set[str] = set()

    def row_with(row: SummaryRow) -> SummaryRow:
        there = earlier.get((row.task, row.operating_point))
        if there is None or (there.n, there.errors, there.repeats) != (row.n, row.errors, row.repeats):
            return row
        lost = {name: estimate for name, estimate in there.metrics.items() if name not in known}
        kept.update(lost)
        return row.model_copy(update={"metrics": {**row.metrics, **lost}}) if lost else row

    rows = tuple(map(row_with, summary.rows))
    if not kept:
        return summary
    note = f"no package that is installed here has the metric {', '.join(sorted(kept))}: what was recorded is shown."
    return summary.model_copy(update={"rows": rows, "notes": (*summary.notes, note)})
