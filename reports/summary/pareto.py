"""Which operating points are worth having: the front of text kept (exact prefix) against speed-up, as tables show them.

On the front is a row that is faster than full depth beyond chance (interval and corrected test), or full depth itself,
unless the table has one that keeps as much text and is as fast. Where no row could be told from full depth,
because of few blocks or disturbed windows, there is no front. The oracle is a bound and never a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.contracts import Metric
from harness.records.summary import Summary, SummaryRow
from reports.metrics.evaluation import can_tell, is_distinguishable
from reports.metrics.faithfulness import EXACT_PREFIX
from reports.metrics.speedups import SPEEDUP, SPEEDUP_OVER_FASTEST, SPEEDUP_OVER_FIRST
from reports.tables.result import is_candidate, is_reference, split_tables

TEXT_KEPT = EXACT_PREFIX
NO_FRONT = "no front: nothing could be told from full depth, with too few blocks of samples or most windows flagged"


def common_speedup(rows: Sequence[SummaryRow]) -> Metric:
    """Return the speed-up that has one baseline for all rows."""
    if len({row.keep for row in rows}) > 1:
        return SPEEDUP_OVER_FIRST
    return SPEEDUP_OVER_FASTEST if len({row.weights_format for row in rows}) > 1 else SPEEDUP


def choose_gain(rows: Sequence[SummaryRow]) -> Metric | None:
    """Return the speed-up that the rows of one table can be compared by.

    ``None`` with random weights, and when nothing was measured.
    """
    measured = [row for row in rows if row.n]
    if not measured or any(row.weights == "random" for row in measured):
        return None
    return common_speedup(measured)


def unmarked(rows: Sequence[SummaryRow]) -> str:
    """Say of a table with axes that it has no mark, in a sentence; empty where it has one."""
    gain = choose_gain(rows)
    if gain is None or any(row.pareto for row in rows):
        return ""
    told = can_tell(gain, [row.estimate(gain) for row in rows])
    return "No row is on the front." if told else f"{NO_FRONT.capitalize()}."


def without_front(rows: Sequence[SummaryRow]) -> str:
    """Say why rows have no axes to be compared on."""
    return "random weights" if rows[0].weights == "random" else "no operating point has both coordinates"


def coordinates(row: SummaryRow, gain: Metric) -> tuple[float, float] | None:
    """Return ``(gain, text kept)``, ``None`` when either was not measured."""
    gained, kept = row.value(gain), row.value(TEXT_KEPT)
    return None if gained is None or kept is None else (gained, kept)


def edge(rows: Sequence[SummaryRow], gain: Metric) -> list[bool]:
    """Say which rows no other beats in text kept and gain; none where too few blocks could tell any from full depth."""
    flags = [False] * len(rows)
    if not can_tell(gain, [row.estimate(gain) for row in rows]):
        return flags
    placed = [
        (index, (-point[0], point[1]))
        for index, row in enumerate(rows)
        if is_candidate(row) and (point := coordinates(row, gain)) is not None
    ]
    for (index, _), flag in zip(placed, front([point for _, point in placed]), strict=True):
        flags[index] = flag
    return flags


def on_front(rows: Sequence[SummaryRow], gain: Metric) -> list[bool]:
    """Say which rows of the edge are on the front: those whose gain over full depth is told from chance, and it itself.

    A gain that is not compared with full depth is taken as it was measured.
    """

    def is_told(row: SummaryRow) -> bool:
        if gain.paired is None or is_reference(row, gain):
            return True
        return is_distinguishable(gain, row.estimate(gain)) and (row.value(gain) or 0.0) > 1

    return [flag and is_told(row) for row, flag in zip(rows, edge(rows, gain), strict=True)]


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say for each ``(cost, quality)`` whether no other point is at least as good in both and better in one.

    Exact comparisons. Equal points are on the front together or not at all.
    """
    on_front = [False] * len(points)
    best = float("-inf")  # quality of what is strictly cheaper
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    for index in order:
        cost, quality = points[index]
        if quality > best:
            best, cost_of_best = quality, cost
            on_front[index] = True
        elif quality == best:
            on_front[index] = cost == cost_of_best
    return on_front


def mark_front(summary: Summary) -> Summary:
    """Return the summary with ``pareto`` set anew in every table. Rows that lack a coordinate are not on it."""
    marked: set[int] = set()
    for table in split_tables(summary):
        gain = choose_gain(table.rows)
        flags = on_front(table.rows, gain) if gain is not None else []
        marked.update(id(row) for row, flag in zip(table.rows, flags, strict=False) if flag)
    rows = tuple(row.model_copy(update={"pareto": id(row) in marked}) for row in summary.rows)
    return summary.model_copy(update={"rows": rows})
