"""The page of file formats and its schemas say what commands write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.study.executors.local import Local
from harness.training.traces.store import COLUMNS
from tests.docs.pages import ROOT, script
from tests.study.inline import Inline

Command = Callable[..., Any]
STUDY = """\
[run]
model = "{model}"
source = "{rows}"
limit = 2
max_new_tokens = 4
energy = "none"
threads = 1
strategies = ["fixed:layer=4"]

[[step]]
name = "traces"
command = "trace --model {model} --source {rows} --task py150 --documents 3 --length 48 --split test --threads 1"
"""
OF_THE_STORE = {"run", "sha256"}
"""What seals add to a record, see :mod:`harness.store.record_files`."""


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """What makes the page."""
    return script("reference")


@pytest.fixture
def written(
    cli: Command, tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[Path]]:
    """``written(name)``: the files of that name, after all commands that write some; artefacts are those that ship."""
    monkeypatch.setattr(Local, "open", Inline.open)  # no process of its own for a point
    (tmp_path / "tiny.toml").write_text(STUDY.format(model=tiny_llama, rows=rows_file))
    model, rows, one = ("--model", tiny_llama), ("--source", rows_file), ("--threads", 1)
    for command in (
        ("run", *model, *rows, *one, "--limit", 6, "--max-new-tokens", 5, "--energy", "none", "--idle-s", 0,
         "--strategy", "confidence:threshold=0.99,0.15", "--out", "run"),
        ("convert", "run", "--out", "rows.jsonl"),
        ("rescore", "run"),
        ("calibrate", "--resume", "run", "--target", "agreement=0.3", "--confidence", 0.8),
        ("verify", *model, *rows, *one, "--prompts", 2, "--max-new-tokens", 4, "--weights-format", "bfloat16",
         "--strategy", "full", "--batch-size", 1, "--json", "certificate.json"),
        ("suitability", *model, *rows, *one, "--task", "py150", "--documents", 8, "--length", 48, "--split", "test",
         "--no-measure-costs", "--keep", 0.5, "--out", "suitability"),
        ("sweep", *model, "--replay", "suitability/trace", "--document-split", "all", "--strategy", "confidence",
         "--points", 3, "--out", "sweep"),
        ("study", "tiny.toml", "--out", "study"),
        ("export", *model, "exported"),
    ):  # fmt: skip
        ran = cli(*command)
        assert ran.code == 0, (command, ran.err)

    def named(name: str) -> list[Path]:
        shipped = ROOT / "harness" / "shipped"
        return sorted(shipped.rglob("*.json") if name == "artefact.json" else tmp_path.rglob(name))

    return named


@pytest.mark.slow
def test_a_schema_is_that_of_the_file(reference: dict[str, Any], written: Callable[[str], list[Path]]) -> None:
    jsonschema = pytest.importorskip("jsonschema_rs")  # comes with schemathesis
    published = dict(reference["generated"]())
    for name in reference["documents"]():
        schema = json.loads(published[f"reference/schemas/{reference['schema_file'](name)}"])
        files = written(name)
        assert files, name
        for file in files:
            text = file.read_text(encoding="utf-8")
            for record in map(json.loads, text.splitlines() if file.suffix == ".jsonl" else [text]):
                jsonschema.validate(schema, record)
                unknown = record.keys() - schema["properties"].keys() - OF_THE_STORE
                assert not unknown or schema.get("additionalProperties"), (name, unknown)
                assert record.keys() & schema["properties"].keys(), name


def test_a_trace_has_the_fields_and_columns_of_the_page(
    reference: dict[str, Any], cli: Command, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    ran = cli(
        *("trace", "--model", tiny_llama, "--task", "py150", "--source", rows_file, "--split", "test"),
        *("--documents", 3, "--length", 48, "--new-tokens", 4, "--threads", 1, "--out", "trace"),
    )
    assert ran.code == 0, ran.err
    page = dict(reference["generated"]())["reference/files.md"].partition("\n## A trace\n")[2].partition("\n## ")[0]
    said = {
        name: names(meaning)
        for first, meaning in re.findall(r"^\| ([^|]*) \| ([^|]*) \|$", page, re.M)
        for name in names(first)
    }
    index = json.loads((tmp_path / "trace" / "index.json").read_text())
    assert index.keys() == said.keys()
    for entries in ("shards", "documents"):
        assert {name for entry in index[entries] for name in entry} == set(said[entries]) - {"project"}
    columns = [name for cells in re.findall(r"^\| (``\w+``) \| .* \| .* \|$", page, re.M) for name in names(cells)]
    assert tuple(columns) == COLUMNS
    with safe_open(tmp_path / "trace" / index["shards"][0]["file"], framework="pt") as shard:
        assert set(shard.keys()) == set(columns)


def names(cell: str) -> list[str]:
    """What stands as code in a cell."""
    return re.findall(r"``(\w+)``", cell)
