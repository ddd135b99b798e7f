"""What longer drafts bring: a line per longest draft of operating points that differ in it alone, and a figure."""

from __future__ import annotations

from typing import Any

import pytest

from reports.figures import settings
from reports.recorded import RecordedRun
from reports.tables.report import report_markdown
from reports.tables.result import draft_families, split_tables
from reports.tables.run_tables import draft_lengths as draft_length_tables

FULL, EXITS = "full", "fixed:layer=5@lossless"
LENGTHS = {8: (1, 2, 3, 4), 2: (1, 2)}


@pytest.fixture
def run(build: Any) -> Any:
    points = (FULL, *(f"{EXITS}@draft={most}" for most in LENGTHS), "fixed:layer=2@lossless@draft=8")
    made = build(points=points, kv="recompute")
    for name, tokens in zip(points, ((1, 2, 3, 4), *LENGTHS.values(), (1, 2)), strict=True):
        drafted = {} if name == FULL else {
            "drafted_at": (None, *(5,) * (len(tokens) - 1)),
            "accepted": (False, *(True,) * (len(tokens) - 1)),
            "drafts": len(tokens) - 1,
            "verifications": 1,
        }  # fmt: skip
        made.window(name, {"token_ids": tokens, **drafted})
    return made


def recorded(run: Any) -> RecordedRun:
    return run.recorded("runs/one")


def test_lengths_of_one_operating_point_stand_together_shortest_first(run: Any) -> None:
    assert draft_families(run.summary().rows) == {EXITS: [2, 1]}
    (table,) = split_tables(run.summary())
    (found,) = draft_length_tables(table)
    names, lengths, tokens, *_ = found.columns
    assert (names.cells, lengths.texts) == ((EXITS, EXITS), ("2", "8"))
    assert (tokens.term, tokens.texts) == ("tokens / verification", ("1.00 [too few]", "3.00 [too few]"))
    assert "**What longer drafts bring**" in report_markdown(run.summary())


def test_the_figure_has_a_line_of_all_lengths_in_each_panel(run: Any) -> None:
    (figure,) = settings.draft_lengths(recorded(run))
    axes = figure.draw("text").axes
    assert [one.get_ylabel() for one in axes] == ["tokens / verification", "accepted", "decoding speed-up"]
    (line,) = axes[0].lines
    assert (line.get_label(), list(line.get_xdata()), list(line.get_ydata())) == (EXITS, [2, 8], [1.0, 3.0])
