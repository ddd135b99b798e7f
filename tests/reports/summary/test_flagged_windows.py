"""Every table says how many windows something else disturbed, and which speed-ups are others without them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reports.collection import Collection, write_collection
from reports.comparing.results import notes
from reports.leaderboard.data import describe_point, entry_of
from reports.recorded import RecordedRun
from reports.tables.report import brief, render
from reports.tables.result import windows_of

FULL, OTHER = "full", "fixed:layer=22"
SAID = "2 of 24 flagged; speed-up without them: fixed:layer=22 1.00× (0.75× with them)"


def made(build: Any, **flags: tuple[int, ...]) -> RecordedRun:
    """A run of 12 blocks; in two of them something else ran, and the exit's requests took three times as long."""
    run = build(points=(FULL, OTHER))
    for block in range(12):
        run.window(FULL, {}, block=block, flags=("short-window",))
        slow = block in flags.get("foreign", ())
        run.window(OTHER, {}, block=block, duration=3.0 if slow else 1.0, flags=("foreign-cpu",) if slow else ())
    return RecordedRun(Path("runs/one"), run.manifest, tuple(run.windows), tuple(run.samples), run.summary())


@pytest.fixture
def disturbed(build: Any) -> RecordedRun:
    return made(build, foreign=(3, 7))


def test_a_row_knows_its_flagged_windows_and_its_speed_up_without(build: Any, disturbed: RecordedRun) -> None:
    full, other = disturbed.summary.rows
    assert (full.windows, full.flagged, full.speedup_unflagged) == (12, 0, None)
    assert (other.windows, other.flagged) == (12, 2)
    assert other.value("speedup") == pytest.approx(12 / 16)
    assert other.speedup_unflagged == pytest.approx(1.0)
    quiet, hopeless = made(build).summary.rows, made(build, foreign=tuple(range(8))).summary.rows
    assert windows_of(quiet) == "none of 24 flagged"
    assert hopeless[1].speedup_unflagged is None, "four blocks are left"
    assert windows_of([row.model_copy(update={"windows": 0}) for row in quiet]) == "", "an older summary"


def test_every_table_says_so(disturbed: RecordedRun, tmp_path: Path) -> None:
    for shown in (brief(disturbed.summary), render(disturbed.summary)):
        console = Console(width=130, record=True, file=io.StringIO())
        console.print(shown)
        assert SAID in console.export_text()
    write_collection(Collection((disturbed,)), tmp_path / "report", figures=False)
    for name in ("index.html", "report.md", "tables.tex"):
        assert "2 of 24 flagged; speed-up without them" in (tmp_path / "report" / name).read_text(), name
    for name in ("summary.csv", "summary.json"):
        assert "speedup_unflagged" in (tmp_path / "report" / name).read_text()
    entry = entry_of(disturbed, "0" * 16, ())
    settings = dict(describe_point(disturbed, entry, entry.points[1], 1)["settings"])
    assert settings["measured windows"].startswith("2 of 12 flagged")
    assert any(SAID in note for note in notes(disturbed, disturbed, (), interleaved=True)), "compare"
