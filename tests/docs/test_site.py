"""The README is short and leads to pages that exist; the pages made of the code say what the code declares."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.cli import COMMANDS
from harness.records import SampleRecord
from harness.registry import RECIPES, REGISTRIES
from tests.docs.pages import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_read_in_ten_minutes() -> None:
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)", README))
def test_the_readme_leads_to_what_is_there(target: str) -> None:
    assert (ROOT / target).is_file()


def test_the_readme_and_the_first_run_show_one_table() -> None:
    def rows(text: str) -> list[str]:
        strategies = "full|fixed|confidence|saturation|classifier|rl|predictor|consistent|sec|hash|oracle"
        return re.findall(rf"^\|[^|]*\| (?:operating point|{strategies}).*", text, re.M)

    page = (ROOT / "docs" / "tutorials" / "first-run.md").read_text(encoding="utf-8")
    assert len(rows(README)) == 16
    assert rows(README) == rows(page)


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """What the site's hook makes: path → text."""
    return dict(runpy.run_path(str(ROOT / "docs" / "hooks" / "reference.py"))["generated"]())


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


def test_a_schema_is_that_of_the_file(generated: dict[str, str], tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema_rs")  # comes with schemathesis
    ran = tiny_run("--strategy", "fixed:layer=4", "--out", "run")
    assert ran.code == 0, ran.err
    for name, lines in (("manifest", False), ("samples", True), ("windows", True), ("summary", False)):
        file = next((tmp_path / "run").glob(f"{name}.json*"))
        schema = json.loads(generated[f"reference/schemas/{name}.schema.json"])
        texts = file.read_text().splitlines() if lines else [file.read_text()]
        assert texts
        for text in texts:
            jsonschema.validate(schema, json.loads(text))


def test_every_field_of_a_record_is_explained(generated: dict[str, str]) -> None:
    page = generated["reference/files.md"].partition("## samples.jsonl")[2].partition("\n## ")[0]
    said = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| (.*) \|$", page, re.M))
    assert set(said) == set(SampleRecord.model_fields)
    assert {name for name, meaning in said.items() if not meaning.strip()} == set()


def test_every_route_of_the_server_is_there(generated: dict[str, str]) -> None:
    paths = json.loads(generated["reference/schemas/openapi.json"])["paths"]
    assert {"/generate", "/v1/completions", "/health"} <= set(paths)
    for path in paths:
        assert f" {path}\n" in generated["reference/http.md"]
