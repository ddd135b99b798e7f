"""What another process might have measured is shown, and is not hidden in an interval."""

from __future__ import annotations

import pytest

from harness.records.summary import SummaryRow
from tests.reports.conftest import RunBuilder

OTHER = "fixed:layer=5"


def run_of(factors: list[float]) -> RunBuilder:
    """One repeat per factor: the other operating point takes 1 s × factor, full depth 2 s."""
    run = RunBuilder()
    for repeat, factor in enumerate(factors):
        for block in range(6):
            run.window("full", {}, duration=2.0, block=block, repeat=repeat)
            run.window(OTHER, {}, duration=factor, block=block, repeat=repeat)
    return run


def spread(row: SummaryRow) -> tuple[float | None, float | None]:
    return row.value("speedup_range_low"), row.value("speedup_range_high")


def test_the_ratio_of_each_repeat_spans_the_range() -> None:
    row = run_of([1.0, 1.25, 0.8]).row(OTHER)
    assert spread(row) == (pytest.approx(1.6), pytest.approx(2.5))
    assert row.value("speedup") == pytest.approx(6 * 2 / (1.0 + 1.25 + 0.8) / 2)
    assert row.estimate("speedup").n == 6  # repeats of a block are one pair


def test_a_single_repeat_has_no_range_and_says_so() -> None:
    run = run_of([1.0])
    assert spread(run.row(OTHER)) == (None, None)
    assert any(note.startswith("single repeat") for note in run.summary().notes)


def test_the_largest_difference_between_processes_is_said() -> None:
    summary = run_of([1.0, 1.25]).summary()
    assert [spread(row) for row in summary.rows if row.operating_point == "full"] == [(None, None)]
    assert any("25.0 % (fixed:layer=5: 1.600× to 2.000×)" in note for note in summary.notes)
