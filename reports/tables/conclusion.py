"""What a table comes to, in the words it begins with: which operating point to use, what it saves, what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

from harness.contracts import Metric
from harness.records.summary import SummaryRow
from reports.metrics.evaluation import can_tell, is_distinguishable
from reports.metrics.vocabulary import EDIT_SIMILARITY_DIFFERENCE, score_metrics
from reports.statistics.intervals import MINIMUM_PAIRS
from reports.summary.pareto import common_speedup
from reports.tables.result import ResultTable, is_asserted, is_candidate, is_reference


def conclusion(table: ResultTable) -> str:
    """Return what to use by a table: the fastest without a loss, and the fastest of all; or why none can be told.

    Only differences that passed their test are told; the words are those of the rows' verdicts. Rows of several weights
    formats are held against the fastest full depth of them, as one of them is itself.
    """
    full, metric = table.rows[0], common_speedup(table.rows)
    others = [
        row for row in table.rows[1:] if is_candidate(row) and row.n and row.verdict and not is_reference(row, metric)
    ]
    told = [found for row in others if (found := row.estimate(metric)) is not None]
    if not full.n:
        return "Full depth finished no sample, so that nothing can be compared with it; samples.jsonl says why."
    if not others:
        return "Nothing was compared with full depth. Name strategies with --strategy."
    if not told:
        return "There are no times to compare with full depth's; the report has what was scored."
    if not can_tell(metric, [row.estimate(metric) for row in table.rows]):
        blocks = max(one.n or 0 for one in told)
        in_blocks = f", measured in {blocks} blocks," if 0 < blocks < full.n else ""
        enough = max(50, MINIMUM_PAIRS * -(-full.n // blocks) if blocks else 0)
        few = f"{full.n} samples{in_blocks} are too few to tell any operating point from full depth."
        return f"Inconclusive: {few} Use --limit {enough} or more."
    return _best(others, metric)


def _best(others: Sequence[SummaryRow], metric: Metric) -> str:
    """Say which rows are faster, by a comparison with full depth."""

    def speedup(row: SummaryRow) -> float:
        return row.value(metric) or 0.0

    distinct = [row for row in others if is_distinguishable(metric, row.estimate(metric))]
    faster = sorted((row for row in distinct if speedup(row) > 1), key=speedup, reverse=True)
    if not faster:
        if len(distinct) == len(others):
            first = f"Use full depth: each of {len(others)} operating points is slower beyond chance."
            fastest = max(others, key=speedup)
            return f"{first} The fastest of them is {fastest.operating_point} ({fastest.verdict})."
        none = f"Use full depth: none of {len(others)} operating points is faster beyond chance."
        return f"{none} That does not make them equal: more samples (--limit) tell smaller differences."
    free = next((row for row in faster if _keeps(row)), None)
    if free is None:
        first = "Use full depth where its text counts: nothing that is faster is known to keep its edit similarity."
    elif _has_its_text(free):
        first = f"Use {free.operating_point}: {free.verdict}."
    else:
        first = f"Use {free.operating_point}: {free.verdict}; no measurable loss of edit similarity."
    if faster[0] is free:
        return f"{first} It is the fastest of all {len(others)}."
    return f"{first} The fastest of all is {faster[0].operating_point} ({faster[0].verdict})."


def _has_its_text(row: SummaryRow) -> bool:
    """Whether a row's texts are those of the full depth that scores are compared with, in every completion."""
    return is_asserted(row) and not row.stop and row.baseline_format == row.weights_format


def _keeps(row: SummaryRow) -> bool:
    """Whether its text is full depth's, or a loss of edit similarity was looked for and could not be told."""
    if _has_its_text(row):
        return True
    _, difference = score_metrics(EDIT_SIMILARITY_DIFFERENCE.removesuffix("_difference"))
    estimate = row.estimate(difference)
    if estimate is None or estimate.interval is None:
        return False
    return not (is_distinguishable(difference, estimate) and estimate.value < 0)
