"""A report's front page says what the report holds, and shows texts of others as they stand."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reports.collection import HEAD, Collection, write_collection
from reports.recorded import RecordedRun

NASTY = "<script>alert(1)</script> \"x' \u202e{{ 7 * 7 }}"


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
            scores, layers = {"edit_similarity": 0.5 - place / 10}, (10, 10 - place, 10 - place * block % 3)
            sample = {"scores": scores, "exit_layers": layers, "token_texts": ("a", " b", " c")}
            made.window(point, sample, block=block)
    return made.recorded("runs/one")


def front_page(collection: Collection, out: Path, **how: Any) -> str:
    return write_collection(collection, out, **how)[0].read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_links_tables_figures_completions_and_notes(run: RecordedRun, tmp_path: Path) -> None:
    page = front_page(Collection((run,)), tmp_path, width="column")
    assert page.startswith(HEAD)
    links = set(re.findall(r'(?:href|src)="([^"]+)"', page))
    assert {"#runs", "#tables", "#figures", "#completions", "#notes", "tables.tex", "completions-one.html"} <= links
    figures = {f"figures/one-py150-exit-layers.{suffix}" for suffix in ("svg", "pdf", "png")}
    assert figures <= links
    assert run.summary.notes[0][:20] in page
    assert "decoding speed-up" in page.partition("<details>")[2]
    assert "max-width: 3.5in" in page
    assert "0.500" in re.findall(r"<td[^>]*>(.*?)</td>", page.partition('<th scope="row">full</th>')[2])


def test_texts_of_others_stay_texts(run: RecordedRun, tmp_path: Path) -> None:
    page = front_page(Collection((run,), refused=((NASTY, NASTY),)), tmp_path, figures=False)
    assert "script" not in Tags(page).opened
    assert "img" not in Tags(page).opened
    assert "\u202e" not in page
    assert "49" not in page.partition("<h1>")[2].partition('<h2 id="tables"')[0]
    assert page.count("&lt;script&gt;alert(1)") >= 3


def test_a_part_that_is_empty_is_left_out(tmp_path: Path) -> None:
    page = front_page(Collection(()), tmp_path)
    assert not {"#tables", "#figures", "#completions", "#notes"} & set(re.findall(r'href="([^"]+)"', page))
