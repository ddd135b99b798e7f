"""The reference section: apart from our rows, with why it cannot be compared, and nothing made up."""

from __future__ import annotations

import pytest

from reports.published.section import (
    CODEXGLUE_CAVEATS,
    GREEN_CODE_CAVEATS,
    Reference,
    published,
    references,
)
from reports.tables.table import Cell
from reports.tables.writers import escape_markdown, to_markdown


def rows_of(reference: Reference) -> list[dict[str, Cell]]:
    names = [column.header for column in reference.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*(one.cells for one in reference.columns), strict=True)]


def test_the_languages_of_a_report_decide_what_stands_there() -> None:
    assert [(one.key, one.title) for one in references(["java"])] == [
        ("green-code", "GREEN-CODE on JavaCorpus"),
        ("codexglue", "CodeXGLUE leaderboard, JavaCorpus"),
    ]
    assert len(references()) == 4
    assert references([]) == ()
    assert list(published([])) == []


def test_full_depth_saves_nothing_and_its_saving_is_missing_not_zero() -> None:
    (table,) = (one for one in references(["python"]) if one.key == "green-code")
    full = [row for row in rows_of(table) if row["system"] == "OPT-2.7B: full depth, tuned"]
    assert [row["KV cache"] for row in full] == ["none", "propagate"]
    assert all(row["time saved"] is None and row["energy saved"] is None for row in full)
    (agent,) = (row for row in rows_of(table) if row["system"] == "OPT-2.7B: agent, threshold 0.9")
    assert agent["energy saved"] == pytest.approx(1 - 339.311814 / 625.866606, abs=1e-4)
    assert agent["layers skipped"] == pytest.approx(1 - 15.531317 / 32, abs=2e-4)


def test_rows_that_are_probably_another_language_s_are_left_out() -> None:
    (table,) = (one for one in references(["java"]) if one.key == "green-code")
    assert not [row for row in rows_of(table) if "untuned" in str(row["system"]) and row["KV cache"] != "none"]


def test_markdown_says_what_it_is_not() -> None:
    text = "\n".join(to_markdown(published(["python"]))).lstrip()
    assert text.startswith("## For reference: published numbers")
    assert "never ranked with the rows above" in text
    assert "official test; our rows are official dev or other data: not the same set" in text.lower()
    for caveat in (*GREEN_CODE_CAVEATS, *CODEXGLUE_CAVEATS):
        assert f"- {escape_markdown(caveat)}" in text
    assert "JavaCorpus" not in text
    lines = [line for line in text.splitlines() if line.startswith("| CodeGPT |")]
    assert lines == ["| CodeGPT | 0.4218 | 0.7123 | 0.7658 |"]
    assert "| GPT-NeoX-24L" not in text  # no entry for PY150
    assert "| PyCoder | 0.4391 | 0.7174 | – |" in text
