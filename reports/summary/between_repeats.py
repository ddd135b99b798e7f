"""What a second process would have measured: the ratios of each repeat by itself.

Intervals resample blocks, so they say what other prompts might have given. What another process might have given
(another memory layout, other code paths chosen at start) is as different as the repeats are from each other; with a few
of them a range says more than an interval would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.records.summary import SummaryRow
from reports.statistics.intervals import Pair, paired_ratio
from reports.summary.measured import Measured

__all__ = ["about_repeats", "ranges"]


def ranges(cell: Measured, full: Measured) -> dict[str, tuple[float, float] | None]:
    """Return smallest and largest ratio over the repeats, ``None`` with one repeat or for full depth itself.

    Fields ``speedup_range`` and ``decode_speedup_range`` of the summary row.
    """
    repeats = sorted({window.repeat for window in cell.windows.values()})
    if cell is full or len(repeats) < 2:
        return {"speedup_range": None, "decode_speedup_range": None}
    return {
        "speedup_range": _range([cell.window_pairs(full, repeat) for repeat in repeats]),
        "decode_speedup_range": _range([cell.decode_pairs(full, repeat) for repeat in repeats]),
    }


def about_repeats(rows: Sequence[SummaryRow]) -> Iterator[str]:
    """Yield what must be said of the repeats."""
    measured = [row for row in rows if row.n]
    if any(row.repeats == 1 for row in measured):
        yield "single repeat: nothing here shows how much a second run would differ."
    spread = [(high / low - 1, row) for row in measured if row.speedup_range for low, high in [row.speedup_range]]
    if spread:
        most, row = max(spread, key=lambda pair: pair[0])
        assert row.speedup_range is not None
        low, high = row.speedup_range
        yield (
            f"every repeat ran in a process of its own; between them a row's speed-up differed by up to "
            f"{100 * most:.1f} % ({row.operating_point}: {low:.3f}× to {high:.3f}×). The intervals resample prompts "
            "and do not contain this."
        )


def _range(pairs: Sequence[Sequence[Pair]]) -> tuple[float, float] | None:
    ratios = [ratio for one in pairs if (ratio := paired_ratio(one)) is not None]
    return (min(ratios), max(ratios)) if len(ratios) > 1 else None
