"""Which drafted tokens stood, worked out by hand: by source, by layer and by kind, with intervals over blocks."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from harness.records.estimate import NoInterval
from harness.records.summary import Acceptance
from reports.tables.frame import acceptance_csv
from reports.tables.report import report_markdown
from reports.tables.result import split_tables
from reports.tables.run_tables import acceptance_tables

FULL, BOTH, ALONE = "full", "fixed:layer=5@lossless+lookup", "fixed:layer=5@lossless"

SAMPLE = {
    # `def f (x` of prefill, two exits and a verification; then ` ) :` of look-up, of which full depth replaced the 2nd.
    "token_ids": (1, 2, 3, 4, 5, 6),
    "token_texts": ("def", " f", "(", "x", ")", ":"),
    "drafted_at": (None, 5, 2, None, 0, 0),
    "accepted": (False, True, True, False, True, False),
    "discarded": [{"place": 5, "token_ids": (7, 8), "drafted_at": (0, 0), "token_texts": ("->", " int")}],
    "drafts": 5,
    "verifications": 2,
}


def acceptances(run: Any) -> dict[tuple[Any, ...], Acceptance]:
    return {(one.source, one.layer, one.kind): one for row in run.summary().rows for one in row.acceptances}


@pytest.fixture
def run(build: Any) -> Any:
    made = build(points=(FULL, BOTH), kv="recompute")
    made.window(FULL, {"token_ids": SAMPLE["token_ids"]})
    made.window(BOTH, SAMPLE)
    return made


def test_every_drafted_token_counts_once_under_what_drafted_it(run: Any) -> None:
    found = acceptances(run)
    counts = {key[:2]: (one.accepted, one.drafted) for key, one in found.items() if key[2] is None}
    assert counts == {
        ("lookup", None): (1, 3), ("exit", 2): (1, 1), ("exit", 5): (1, 1), ("exit", None): (2, 2),
        (None, None): (3, 5),
    }  # fmt: skip
    assert [key[:2] for key in found if key[2] is None] == list(counts)  # as they are read
    assert found[None, None, None].share.value == run.row(BOTH).value("acceptance") == 3 / 5


def test_a_kind_is_that_of_what_was_drafted(run: Any) -> None:
    """`int` behind `->` is an identifier, though the completion has no token there."""
    found = acceptances(run)
    counts = {(one.source, one.kind): (one.accepted, one.drafted) for one in found.values() if one.layer is None}
    assert counts["exit", "identifier"] == (1, 1)
    assert counts["exit", "operator"] == (1, 1)
    assert counts["lookup", "operator"] == (1, 2)
    assert counts["lookup", "identifier"] == (0, 1)
    assert counts[None, "operator"] == (2, 3)
    assert ("exit", "keyword") not in counts  # prefill said `def`


def test_an_interval_resamples_blocks(build: Any) -> None:
    """Halves that stand whole and fall whole tell less than as many tokens of their own would."""
    kept = {"token_ids": (1, 2, 3), "drafted_at": (None, 5, 5), "accepted": (False, True, True), "drafts": 2}
    lost = {
        "token_ids": (1, 9),
        "drafted_at": (None, 5),
        "accepted": (False, False),
        "discarded": [{"place": 1, "token_ids": (2, 3), "drafted_at": (5, 5), "token_texts": ("", "")}],
        "drafts": 2,
    }
    clustered, mixed = build(points=(FULL, ALONE), kv="recompute"), build(points=(FULL, ALONE), kv="recompute")
    for block in range(8):
        clustered.window(ALONE, *[kept if block % 2 else lost] * 2, block=block)
        mixed.window(ALONE, *{0: (kept, kept), 1: (lost, lost)}.get(block, (kept, lost)), block=block)
    wide, narrow = (acceptances(one)[None, None, None].share for one in (clustered, mixed))
    assert wide.value == narrow.value == 0.5
    assert wide.interval[0] < 0.2
    assert wide.interval[1] > 0.8
    assert 0.25 < narrow.interval[0] < 0.5 < narrow.interval[1] < 0.75
    assert clustered.row(ALONE).estimate("acceptance").interval == wide.interval


def test_no_interval_where_a_bootstrap_would_be_certain(build: Any, run: Any) -> None:
    assert acceptances(run)[None, None, None].share.no_interval is NoInterval.FEW_DIFFERING
    kept = {"token_ids": (1, 2), "drafted_at": (None, 5), "accepted": (False, True), "drafts": 1}
    certain = build(points=(FULL, ALONE), kv="recompute")
    for block in range(20):
        certain.window(ALONE, kept, block=block)
    share = acceptances(certain)[None, None, None].share
    assert (share.value, share.interval, share.no_interval) == (1.0, None, NoInterval.FEW_DIFFERING)
    assert certain.row(ALONE).estimate("acceptance").no_interval is NoInterval.FEW_DIFFERING


def test_the_tables_have_the_operating_points_that_drafted(run: Any) -> None:
    (table,) = split_tables(run.summary())
    found = {one.title: {column.header: column.texts for column in one.columns[2:]} for one in acceptance_tables(table)}
    assert found == {
        "Drafts that stood, by what drafted them": {
            "lookup": ("0.33 [too few] of 3",), "exit at 2": ("1.00 [too few] of 1",),
            "exit at 5": ("1.00 [too few] of 1",), "exits": ("1.00 [too few] of 2",),
        },
        "Drafts of lookup that stood, by kind of token": {
            "identifier": ("0.00 [too few] of 1",), "operator": ("0.50 [too few] of 2",),
        },
        "Drafts of exits that stood, by kind of token": {
            "identifier": ("1.00 [too few] of 1",), "operator": ("1.00 [too few] of 1",),
        },
    }  # fmt: skip
    text = report_markdown(run.summary())
    assert "**Drafts of lookup that stood, by kind of token**" in text
    assert f"| `{BOTH}` | 0.33 \\[too few] of 3 | 1.00" in text


def test_csv_leaves_empty_what_a_line_is_all_of(run: Any) -> None:
    (text,) = acceptance_csv([("", run.summary())]).values()
    lines = list(csv.DictReader(io.StringIO(text)))
    assert "run" not in lines[0]
    (line,) = (one for one in lines if (one["source"], one["layer"], one["kind"]) == ("lookup", "", ""))
    assert (line["drafted"], line["accepted"], float(line["share"]), line["low"]) == ("3", "1", 1 / 3, "")
    named = acceptance_csv([("a", run.summary()), ("b", run.summary())])["acceptance.csv"]
    assert {one["run"] for one in csv.DictReader(io.StringIO(named))} == {"a", "b"}
