"""``harness reproduce``: measured here, beside the published numbers, from one command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture
def arguments(tiny_llama: Path, rows_file: Path) -> list[str]:
    return [
        "reproduce", "green-code", "--figure", "kv", "--model", str(tiny_llama), "--source", str(rows_file),
        "--limit", "6", "--energy", "none", "--out", "out",
    ]  # fmt: skip


def test_the_kv_figure_is_measured_and_shown_beside_the_paper_s(
    cli: Command, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli(*arguments)
    assert ran.code == 0, ran.err
    for label in (
        "full@none",
        "full@propagate",
        "fixed:layer=6@none",
        "fixed:layer=6@propagate",
        "fixed:layer=6@recompute",
    ):
        assert label in ran.out
    assert "0.27" in ran.out  # the authors' cached full depth, Llama on Java
    text = (tmp_path / "out" / "kv.md").read_text(encoding="utf-8")
    assert "| `full@none` | 1.00 | 1.00 | 1.00 | – | 0.0 % |" in text
    again = cli("reproduce", "--resume", "out", "--json")  # the run knows its settings
    assert again.code == 0, again.err
    rows = json.loads(again.out)["py150"]
    assert [row["operating_point"] for row in rows][:2] == ["full@none", "full@propagate"]
    assert rows[0]["time"]["value"] == 1
    assert all(row["energy"] is None for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["brown-code"], "unknown paper 'brown-code'"), (["green-code", "--figure", "99"], "unknown figure '99'")],
)
def test_what_cannot_be_reproduced_is_one_line(cli: Command, words: list[str], said: str) -> None:
    assert said in cli("reproduce", *words).error
