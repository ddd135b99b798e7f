"""What a table comes to, in the words it begins with: which operating point to use, what it saves, what it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.contracts import Metric
from harness.records.estimate import Estimate, NoInterval
from harness.records.summary import SummaryRow
from reports.metrics.evaluation import can_tell, excludes_no_difference, is_distinguishable
from reports.metrics.vocabulary import EDIT_SIMILARITY_DIFFERENCE, score_metrics
from reports.statistics.intervals import CONFIDENCE, MINIMUM_PAIRS
from reports.statistics.significance import LEVEL
from reports.summary.pareto import common_speedup
from reports.tables.result import ResultTable, is_asserted, is_candidate, is_reference

_POWER = 0.8


def conclusion(table: ResultTable) -> str:
    """Return what to use by a table: the fastest without a loss, and the fastest of all; or why none can be told.

    Only differences that passed their test are told; the words are those of the rows' verdicts. Rows of several weights
    formats are held against the fastest full depth of them, as one of them is itself.
    """
    full, metric = table.rows[0], common_speedup(table.rows)
    others = [
        row for row in table.rows[1:] if is_candidate(row) and row.n and row.verdict and not is_reference(row, metric)
    ]
    found = [one for row in others if (one := row.estimate(metric)) is not None]
    told = [one for one in found if one.no_interval is not NoInterval.SAME_WORK]
    if told and (table.disturbed or all(one.no_interval is NoInterval.FLAGGED for one in told)):
        counted, flagged = sum(row.windows for row in table.rows), sum(row.flagged for row in table.rows)
        return (
            f"Other work disturbed {flagged} of {counted} windows (flagged), so no speed-up is told. Measure again on "
            "a quiet machine, with --strict."
        )
    if not full.n:
        return "Full depth finished no sample, so that nothing can be compared with it; samples.jsonl says why."
    if not others:
        return "Nothing was compared with full depth. Name strategies with --strategy."
    if not told:
        nothing = "Use full depth: nothing left a layer out or drafted a token, so that no gain is more than chance."
        return nothing if found else "There are no times to compare with full depth's; the report has what was scored."
    if not can_tell(metric, [row.estimate(metric) for row in table.rows]):
        blocks = max(one.n or 0 for one in told)
        in_blocks = f", measured in {blocks} blocks," if 0 < blocks < full.n else ""
        enough = max(50, MINIMUM_PAIRS * -(-full.n // blocks) if blocks else 0)
        few = f"{full.n} samples{in_blocks} are too few to tell any operating point from full depth."
        return f"Inconclusive: {few} Use --limit {enough} or more."
    return _best(table, others, metric)


def _best(table: ResultTable, others: Sequence[SummaryRow], metric: Metric) -> str:
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
        return _nearest(table, others, metric)
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


def _nearest(table: ResultTable, others: Sequence[SummaryRow], metric: Metric) -> str:
    """Say which row comes nearest to being faster where none is told to be, what it lacks, and what would tell.

    The number of samples is that with which a gain as large as the measured one passes the corrected test four times
    in five, of costs that scatter as these do.
    """
    tested = [one for row in table.rows if (one := row.estimate(metric)) is not None and one.p is not None]
    gains = [
        (one.p_holm, -one.value, row, one)
        for row in others
        if (one := row.estimate(metric)) is not None and one.p_holm is not None and one.interval and one.value > 1
    ]
    if not gains:
        fastest = max(others, key=lambda row: row.value(metric) or 0.0)
        count = f"none of {len(others)} operating points was measured as faster"
        return f"Use full depth: {count}. The fastest of them is {fastest.operating_point} ({fastest.verdict})."
    p, _, row, found = min(gains, key=lambda one: one[:2])
    apart = excludes_no_difference(metric, found)
    lacks = (
        f"that interval is of one comparison, and corrected for {len(tested)} p is {p:.2g}, above {LEVEL}"
        if apart
        else "its interval includes 1, so it may not be faster at all"
    )
    needed = max(row.n + 1, math.ceil(row.n * _times_as_many(found, len(tested))))
    digits = max(0, len(str(needed)) - 2)
    about = -(-needed // 10**digits) * 10**digits
    return (
        f"Use full depth until more is known. The best candidate of {len(others)} is {row.operating_point}, "
        f"{found.text('{:.2f}×', '{:.2f}')}: {lacks}. If it is as fast as that, about {about:,} samples would tell "
        f"(--limit {about})."
    )


def _times_as_many(found: Estimate, tests: int) -> float:
    """Return by how much the samples of a ratio must grow to pass as the clearest of so many tests, 4 times in 5."""
    from scipy.special import ndtri, stdtrit  # late, as everywhere here: a third of a second

    low, high = found.interval or (found.value, found.value)
    half = max(math.log(high / low) / 2, 1e-9)
    deviations = math.log(found.value) / half * float(stdtrit(max(1, (found.n or 2) - 1), (1 + CONFIDENCE) / 2))
    needed = float(ndtri(1 - LEVEL / (2 * tests)) + ndtri(_POWER))
    return (needed / deviations) ** 2


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
