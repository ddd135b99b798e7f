"""A report's front page says what the report holds, and shows texts of others as they stand."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reports.collection import HEAD, front_page
from reports.figures.catalogue import Page
from reports.figures.drawing import Figure
from reports.recorded import RecordedRun
from reports.tables.report import task_tables
from reports.tables.table import Table

NASTY = "<script>alert(1)</script> \"x' \u202e{{ 7 * 7 }}"
FILES = {"tables.tex": "LaTeX tables"}


class Tags(HTMLParser):
    """Collects what a page opens."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


@pytest.fixture
def run(build: Any) -> RecordedRun:
    made = build(source=NASTY)
    for block in range(6):
        for place, point in enumerate(made.points):
            made.window(point, {"scores": {"edit_similarity": 0.5 - place / 10}}, block=block)
    return RecordedRun(Path("runs/one"), made.manifest, tuple(made.windows), tuple(made.samples), made.summary())


def test_it_links_tables_figures_completions_and_notes(run: RecordedRun) -> None:
    page = front_page(
        Table.of_rows("", ("run", "model"), [("one", "tiny")]),
        task_tables([("one", run)]),
        [Table.of_rows("Every number", ("name", "n"), [("one", 1.0)])],
        [Figure("a-front", "A front", "Made up.", lambda _: None)],  # type: ignore[arg-type, return-value]
        [Page("completions-one.html", "Completions of one", lambda: "")],
        files=FILES,
        folder="figures",
        notes=[("one", ("Mind this.",))],
        width="column",
    )
    assert page.startswith(HEAD)
    links = set(re.findall(r'(?:href|src)="([^"]+)"', page))
    assert {"#tables", "#figures", "#completions", "#notes", "tables.tex", "completions-one.html"} <= links
    assert {f"figures/a-front.{suffix}" for suffix in ("svg", "pdf", "png")} <= links
    assert "Mind this." in page
    assert "Every number" in page.partition("<details>")[2]
    assert "max-width: 3.5in" in page
    assert "0.500" in re.findall(r"<td[^>]*>(.*?)</td>", page.partition('<th scope="row">full</th>')[2])


def test_texts_of_others_stay_texts(run: RecordedRun) -> None:
    page = front_page(
        Table.of_rows("", ("run",), [(NASTY,)]),
        task_tables([(NASTY, run), ("two", run)]),
        [Table.of_rows(NASTY, ("name", "n"), [(NASTY, 1.0)])],
        [],
        [],
        files=FILES,
        folder="figures",
        notes=[(NASTY, (NASTY,))],
        refused=[(NASTY, NASTY)],
        undrawn=NASTY,
    )
    assert "script" not in Tags(page).opened
    assert "img" not in Tags(page).opened
    assert "\u202e" not in page
    assert "49" not in page.partition("<h1>")[2].partition('<h2 id="tables"')[0]
    assert page.count("&lt;script&gt;alert(1)") >= 6


def test_a_part_that_is_empty_is_left_out() -> None:
    page = front_page(
        Table.of_rows("", ("run",), []), [], [], [], [], files=FILES, folder="figures", notes=[("one", ())]
    )
    assert not {"#tables", "#figures", "#completions", "#notes"} & set(re.findall(r'href="([^"]+)"', page))
