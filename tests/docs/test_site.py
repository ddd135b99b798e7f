"""The README is short and leads to pages that exist; the pages made of the code say what the code declares."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import harness
from harness.cli import COMMANDS
from harness.records import SampleRecord
from harness.registry import RECIPES, REGISTRIES
from tests.docs.pages import ROOT, script

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_read_in_ten_minutes() -> None:
    assert len(README.splitlines()) <= 140


def test_the_readme_leads_to_what_is_there() -> None:
    found = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", README)
    assert len(found) > 20
    for target, anchor in found:
        assert (ROOT / target).is_file(), target
        assert not anchor or anchor in anchors((ROOT / target).read_text(encoding="utf-8")), (target, anchor)


def anchors(page: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}


def test_the_readme_shows_rows_and_columns_of_the_first_run() -> None:
    def table(text: str) -> dict[str, dict[str, str]]:
        lines = re.findall(r"^\| *[◇●]? *\|((?:[^|\n]+\|){4,}[^|\n]+)\|$", text, re.M)
        heads, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
        return {name: dict(zip(heads[1:], cells, strict=True)) for name, *cells in rows}

    shown = table(README)
    page = table((ROOT / "docs" / "tutorials" / "first-run.md").read_text(encoding="utf-8"))
    assert (len(shown), len(page)) == (7, 16)
    for name, cells in shown.items():
        assert cells == {head: page[name][head] for head in cells}


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """What the site is built of beside pages: path → text."""
    return dict(script("reference")["generated"]())


def test_the_command_line_is_all_there(generated: dict[str, str]) -> None:
    page = generated["reference/cli.md"]
    assert re.findall(r"^## harness (\S+)$", page, re.M) == list(COMMANDS)
    assert re.findall(r"^### harness train (\S+)$", page, re.M) == list(RECIPES.names())
    assert "\n`--weights-format" in page
    assert "the fastest here that keeps float32's tokens" in page


def test_what_is_registered_is_all_there(generated: dict[str, str]) -> None:
    page = generated["reference/registered.md"]
    for registry in REGISTRIES.values():
        for name in registry.names():
            assert re.search(rf"^(### {re.escape(name)}$|\| `{re.escape(name)}` \|)", page, re.M), name
    assert "| `threshold` |" in page


def test_every_column_has_its_line(generated: dict[str, str]) -> None:
    page = generated["reference/columns.md"]
    for name in map(str, harness.columns().column):
        parts = [(name[:at], name[at:]) for at, letter in enumerate(name) if letter == "_"]
        assert f"| `{name}` |" in page or any(
            re.search(rf"^\| `{base}` \|.*`{ending}`", page, re.M) for base, ending in parts
        ), name


def test_every_field_of_a_record_is_explained(generated: dict[str, str]) -> None:
    sections = re.split(r"^##+ ", generated["reference/files.md"], flags=re.M)
    rows = {section.split("\n")[0]: re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", section, re.M) for section in sections}
    assert {name for name, _ in rows["samples.jsonl"]} == set(SampleRecord.model_fields)
    unexplained = [f"{title}: {name}" for title, fields in rows.items() for name, meaning in fields if not meaning]
    assert not unexplained, "; ".join(unexplained)


def test_every_route_of_the_server_is_there(generated: dict[str, str]) -> None:
    paths = json.loads(generated["reference/schemas/openapi.json"])["paths"]
    assert {"/generate", "/v1/completions", "/health"} <= set(paths)
    for path in paths:
        assert f" {path}\n" in generated["reference/http.md"]


def test_a_site_that_needs_another_host_is_not_built(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text('<script src="assets/a.js"></script>, a :class:<code>~Run</code>')
    assert not script("site")["finish"](tmp_path)
    assert (tmp_path / "index.html").read_text().endswith("a <code>Run</code>")
    (tmp_path / "assets" / "site.css").write_text("@import url(https://host/a.css);")
    assert script("site")["finish"](tmp_path) == ["assets/site.css: https://host/a.css"]
