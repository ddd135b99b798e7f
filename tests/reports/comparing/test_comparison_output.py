"""What readers see: nothing cut at any width, everything of a user escaped, and JSON that says why."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from reports.comparing.compare import Wanted, compare_runs
from reports.comparing.conditions import judge, parse_condition
from reports.comparing.document import comparison_document, comparison_markdown, tables
from reports.comparing.results import RunChange
from reports.recorded import RecordedRun
from reports.tables.table import Table
from reports.tables.writers import escape_markdown, to_terminal

Make = Callable[..., RecordedRun]
TIMES = [1.0, 1.1, 0.9, 1.2, 1.0, 1.3, 0.8, 1.0, 1.1, 0.95, 1.05, 1.15]
EVIL = "evil|`<b>all</b>#1 [x](y)"


@pytest.fixture
def found(recorded: Make) -> RunChange:
    scored = {EVIL: [0.5] * 12}
    a = recorded("a", seconds={"full": TIMES, EVIL: TIMES}, scores=scored)
    slower = [1.25 * s for s in TIMES]
    b = recorded("b", seconds={"full": TIMES, EVIL: slower}, scores=scored, model={"name": "<script>alert(1)</script>"})
    return compare_runs(a, b, Wanted())


def printed(found: RunChange, width: int, *, details: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, emoji=False)
    console.print(to_terminal(tables(found, details=details)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_number_is_cut(found: RunChange, width: int) -> None:
    text = printed(found, width)
    numbers = [line for line in text.splitlines() if "ms" in line or "[" in line]
    assert numbers
    assert not [line for line in numbers if "…" in line]
    assert max(map(len, text.splitlines())) <= width
    assert re.search(r"\+25\.0 % \[\S+ \S+\] \*", text)
    assert " propagate " in text
    assert EVIL in text.replace("\n", "")


def test_terminal_and_markdown_show_the_same_changes(found: RunChange) -> None:
    shown = [part for part in tables(found, details=True) if isinstance(part, Table) and part.wide]
    changes = {text for table in shown for column in table.columns for text in column.texts if "[" in text}
    assert len(changes) > 5
    terminal, markdown = printed(found, 100), comparison_markdown(found, [])
    for change in changes:
        assert change in terminal
        assert escape_markdown(change) in markdown
    for point in found.points:
        assert point.verdict in " ".join(terminal.split())
        assert escape_markdown(point.verdict) in markdown


def test_markdown_escapes_names(found: RunChange) -> None:
    text = comparison_markdown(found, judge(parse_condition("latency_p50>+5%"), found.points))
    assert "| KV |" in text
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    assert "](y)" not in text.replace("\\[x](y)", "")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "evil" in line]
    head = next(line for line in text.splitlines() if line.startswith("| operating point"))
    assert rows[0].replace("\\|", "").count("|") == head.count("|")
    assert "❌ latency" in text
    assert "✅ latency" in text


def test_json_says_why_something_is_missing(found: RunChange) -> None:
    document = comparison_document(found, judge(parse_condition("exact_match<0"), found.points))
    again = json.loads(json.dumps(document))
    full, evil = again["points"]
    assert evil["metrics"]["latency_p50_s"]["relative"] == pytest.approx(0.25)
    assert evil["metrics"]["latency_p50_s"]["distinguishable"] is True
    assert evil["metrics"]["exact_match"]["absolute"] is None
    assert evil["metrics"]["exact_match"]["reason"] == "not measured in both"
    assert full["metrics"]["speedup"]["reason"] == "full depth is what it is compared with"
    assert {one["outcome"] for one in again["conditions"]} == {"unknown"}
    assert again["schema_version"] == 2
    assert (full["kv_a"], full["kv_b"]) == ("propagate", "propagate")
