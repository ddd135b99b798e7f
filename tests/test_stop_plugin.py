"""A stop rule of another package, in one file: listed, run as a dimension of operating points, recorded, reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_plugin import seeing

PROJECT = Path(__file__).resolve().parent / "fixtures" / "third_party_stops"
NEW = 8

Shell = Callable[..., Any]
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def site(install: Callable[[Path], Path]) -> Path:
    """A folder the fixture project is installed into."""
    return install(PROJECT)


@pytest.fixture(scope="module")
def made(site: Path, shell: Shell, tiny_llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that compares exits, ways to decode, rules and weights formats."""
    folder = tmp_path_factory.mktemp("stops")
    ran = shell(
        *("run", "--strategy", "fixed:layer=4", "--stop", "none,after,after:tokens=1", "--decode", "lossy,lossless"),
        *("--weights-format", "float32,int8"),
        *("--model", tiny_llama, "--source", rows_file, "--limit", 3, "--max-new-tokens", NEW),
        *("--energy", "none", "--threads", 1, "--out", "out", "--verbose"),
        cwd=folder,
        **seeing(site),
    )
    assert ran.returncode == 0, ran.stderr
    (folder / "said.txt").write_text(ran.stdout)
    return folder


def rows(made: Path) -> dict[str, dict[str, Any]]:
    summary = json.loads((made / "out" / "summary.json").read_text())
    return {row["operating_point"]: row for row in summary["rows"]}


@pytest.mark.slow
def test_a_rule_is_a_dimension_of_operating_points(made: Path) -> None:
    stops, formats = ("", "@stop=after", "@stop=after:tokens=1"), ("@float32", "@int8")
    names = ("full", "fixed:layer=4", "fixed:layer=4@lossless")
    assert set(rows(made)) == {f"{name}{stop}{stored}" for name in names for stop in stops for stored in formats}
    assert {row["stop"] for row in rows(made).values()} == {"", "after", "after:tokens=1"}


def test_records_say_who_ended_a_completion(made: Path) -> None:
    ends: dict[str, set[tuple[str, str, int]]] = {}
    texts: dict[tuple[str, str], list[int]] = {}
    for line in (made / "out" / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        name = sample["operating_point"]
        ends.setdefault(name, set()).add(
            (sample["finish_reason"], sample.get("stop_rule", ""), len(sample["token_ids"]))
        )
        texts[name, sample["sample_id"]] = sample["token_ids"]
    for name, found in ends.items():
        tokens = {"": NEW, "after": 4, "after:tokens=1": 1}[rows(made)[name]["stop"]]
        others = {end for end in found if end[:2] != ("eos", "")}
        assert others <= {("length", "", NEW) if tokens == NEW else ("stop", "after", tokens)}, name
    assert ("stop", "after", 4) in ends["fixed:layer=4@stop=after@float32"]
    for (name, sample_id), token_ids in texts.items():
        if name.startswith("fixed:layer=4@lossless@stop=after@"):
            assert token_ids == texts[f"full@{name.rpartition('@')[2]}", sample_id][:4]


def test_tables_show_what_it_saves_and_warn_of_what_always_stops(made: Path) -> None:
    metrics = {name: row["metrics"] for name, row in rows(made).items()}
    assert "tokens_saved" not in metrics["full@float32"]
    assert metrics["full@stop=after@int8"]["tokens_saved"]["value"] == pytest.approx(0.5)
    assert metrics["fixed:layer=4@lossless@stop=after:tokens=1@float32"]["tokens_saved"]["value"] == pytest.approx(
        7 / 8
    )
    assert metrics["fixed:layer=4@stop=after@float32"]["stopped"]["value"] == 1.0
    said = " ".join((made / "said.txt").read_text().split())
    assert "full@stop=after:tokens=1@float32 on py150 always stops" in said
    assert "full@stop=after@float32 on py150 always stops" not in said
    assert "up to where a stop rule ends them" in said
    assert "lossless rows differ" not in said


def test_the_run_names_its_package(made: Path) -> None:
    plugins = json.loads((made / "out" / "manifest.json").read_text())["plugins"]
    said = {"kind": "stop rule", "name": "after", "distribution": "after-tokens", "version": "1.0"}
    assert any(said.items() <= plugin.items() for plugin in plugins)


def test_it_is_listed_and_shown(site: Path, see: Callable[[Path], None], cli: Command) -> None:
    see(site)
    assert "End a completion after some tokens" in " ".join(cli("list", "stops").out.split())
    assert "harness run --stop after:tokens=4" in " ".join(cli("show", "after").out.split())
