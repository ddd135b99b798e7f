"""A name that a user chose stays inside its code span and its cell."""

from __future__ import annotations

from typing import Any

import pytest

from reports.tables.report import report_markdown
from reports.tables.writers import escape_markdown, markdown_code, markdown_row

EVIL = "evil `t` <script>alert(1)</script>"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("fixed:layer=5", "`fixed:layer=5`"),
        ("a_b*c <d> @e", "`a_b*c <d> @e`"),  # code has no markup
        ("two\nlines", "`two lines`"),
        ("`t` <b>@me #1", "\\`t\\` &lt;b&gt;&#64;me &#35;1"),
        ("a\x1b\u202eb", r"`a\x1b\u202eb`"),
        ("", ""),
    ],
)
def test_a_name_is_code_unless_it_holds_a_backtick(name: str, written: str) -> None:
    assert markdown_code(name) == written


def test_nothing_is_markup_and_nobody_is_mentioned() -> None:
    assert escape_markdown("\\`*_[x](y)\n<a> @b #1") == "\\\\\\`\\*\\_\\[x](y) &lt;a&gt; &#64;b &#35;1"
    assert escape_markdown("$x$ ~~y~~ &lt; \x1b\u202e") == r"\$x\$ \~\~y\~\~ &amp;lt; \\x1b\\u202e"


def test_a_row_keeps_its_cells_apart() -> None:
    assert markdown_row(["a|b", "c"]) == "| a\\|b | c |"


def test_no_report_lets_a_name_out_of_its_code_span(build: Any) -> None:
    run = build(points=("full", EVIL))
    for point in run.points:
        run.window(point, {"scores": {"edit_similarity": 0.5}})
    rows = [line for line in report_markdown(run.summary()).splitlines() if line.startswith("|") and "evil" in line]
    assert rows
    assert all("evil \\`t\\` &lt;script&gt;" in row for row in rows)
    assert not [row for row in rows if "<script>" in row]
