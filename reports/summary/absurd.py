"""Numbers of a summary that cannot be true, which only a damaged or foreign one has: left out, and said once."""

from __future__ import annotations

from harness.records.estimate import Estimate
from harness.records.summary import Summary, SummaryRow
from reports.statistics.plausible import LARGEST, all_plausible, numbers_of
from reports.summary.admission import is_a_score

__all__ = ["without_absurd"]


def without_absurd(summary: Summary) -> Summary:
    """Return a summary without the estimates and attributions that no machine can have reached, and a note of them."""
    rows = tuple(map(_row, summary.rows))
    attributions = tuple(one for one in summary.attributions if all_plausible(numbers_of(one.model_dump())))
    left_out = [
        *(name for row, kept in zip(summary.rows, rows, strict=True) for name in row.metrics.keys() - kept.metrics),
        *(f"where the {one.quantity} goes" for one in summary.attributions if one not in attributions),
    ]
    if not left_out:
        return summary
    note = (
        f"{len(left_out)} number(s) are left out, since they cannot be true (beyond {LARGEST:g} in their unit, or "
        f"no value of their score): {', '.join(sorted(set(left_out)))}. The records are damaged or foreign."
    )
    return summary.model_copy(update={"rows": rows, "attributions": attributions, "notes": (*summary.notes, note)})


def _row(row: SummaryRow) -> SummaryRow:
    kept = {name: estimate for name, estimate in row.metrics.items() if _can_be_true(name, estimate)}
    return row if len(kept) == len(row.metrics) else row.model_copy(update={"metrics": kept})


def _can_be_true(name: str, one: Estimate) -> bool:
    return all_plausible((one.value, one.low, one.high, one.p, one.p_holm)) and is_a_score(name, one.value)
