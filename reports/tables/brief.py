"""What a run ends with in a terminal: one table, and what it says in two sentences. The rest is in its report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

from harness.appearance.terminal import Line, Text
from harness.contracts import Metric
from harness.records.summary import Summary, SummaryRow
from reports.metrics.evaluation import can_tell, is_distinguishable
from reports.metrics.scores import EDIT_SIMILARITY_DIFFERENCE, score_metrics
from reports.statistics.intervals import MINIMUM_PAIRS
from reports.summary.pareto import common_speedup
from reports.tables.result import ResultTable, is_asserted, is_candidate, is_reference, split_tables
from reports.tables.terminal import headline

__all__ = ["Brief", "in_two_sentences"]

WIDEST = 100
"""Columns of a terminal that it needs at most."""


@dataclass(frozen=True)
class Brief:
    """The headline of each table with its verdict, and the first note.

    Attributes:
        summary: what to show.
    """

    summary: Summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        options = options.update(width=min(options.max_width, WIDEST))
        parts = [part for table in split_tables(self.summary) for part in _parts(table, console, options)]
        if self.summary.notes:  # the most misleading first
            parts += [Text(), Line(f"First of {len(self.summary.notes)} notes: {self.summary.notes[0]}", "dim")]
        for part in parts:
            yield from console.render(part, options)


def _parts(table: ResultTable, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    yield from headline(table, console, options)
    yield Text()
    if any(row.pareto or not is_candidate(row) for row in table.rows):
        yield Line("● on the front of exact prefix and speed-up · ◇ a bound, which one cannot deploy", "dim")
    yield Line(in_two_sentences(table))


def in_two_sentences(table: ResultTable) -> str:
    """Return what a table says of its operating points against full depth: the best without a loss, and with one.

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
        return _too_few(full.n, max(one.n or 0 for one in told))
    return _best(others, metric)


def _too_few(samples: int, blocks: int) -> str:
    in_blocks = f", measured in {blocks} blocks," if 0 < blocks < samples else ""
    enough = max(50, MINIMUM_PAIRS * -(-samples // blocks) if blocks else 0)
    return (
        f"{samples} samples{in_blocks} are too few to tell any operating point from full depth. "
        f"Use --limit {enough} or more."
    )


def _best(others: Sequence[SummaryRow], metric: Metric) -> str:
    """Say which rows are faster, by a comparison with full depth."""

    def speedup(row: SummaryRow) -> float:
        return row.value(metric) or 0.0

    distinct = [row for row in others if is_distinguishable(metric, row.estimate(metric))]
    faster = sorted((row for row in distinct if speedup(row) > 1), key=speedup, reverse=True)
    if not faster and len(distinct) == len(others):
        return (
            f"None of {len(others)} operating points is faster than full depth: each is slower beyond chance. "
            f"Fastest of all: {_said(max(others, key=speedup))}."
        )
    if not faster:
        return (
            f"None of {len(others)} operating points is faster than full depth beyond chance. That does not make them "
            "equal: more samples (--limit) tell smaller differences."
        )
    free = next((row for row in faster if _keeps(row)), None)
    if free is None:
        first = "No operating point that is faster beyond chance is known to keep full depth's edit similarity."
    elif _has_its_text(free):
        first = f"Fastest with full depth's own text: {_said(free)}."
    else:
        first = f"Fastest without a loss of edit similarity that can be told from chance: {_said(free)}."
    fastest = faster[0]
    second = f"It is the fastest of all {len(others)}." if fastest is free else f"Fastest of all: {_said(fastest)}."
    return f"{first} {second}"


def _said(row: SummaryRow) -> str:
    return f"{row.operating_point} ({row.verdict})"


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
