"""The search over exit modules, at a budget of two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exit_search import main


@pytest.mark.slow
def test_every_cell_is_made_once_and_measured(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "search"
    given = [
        "--out", str(out), "--model", str(tiny_llama), "--task", "py150", "--source", str(corpus_file), "--documents",
        "12", "--module", "linear", "mlp/8", "--target", "last", "--rate", "0.001", "--steps", "2", "--tokens", "128",
        "--new-tokens", "8",
    ]  # fmt: skip
    main(given)
    rows = json.loads((out / "exit-search.json").read_text())
    assert [(row.get("module"), row.get("base"), row.get("text")) for row in rows] == [
        (None, "frozen", None),
        *((module, base, text) for module in ("linear", "mlp/8")
          for base, text in (("frozen", "documents"), ("frozen", "own"), ("lora", "documents"))),
    ]  # fmt: skip
    for row in rows:
        assert set(row["agreement"]) == {"4", "6", "10"}
        assert 4 <= row["oracle"]["low"] <= row["oracle"]["value"] <= row["oracle"]["high"] <= 12
        (kind,) = row["kinds"].values()
        assert kind == row["oracle"]
    frozen = [row["last_layer"]["value"] for row in rows if row.get("base") != "lora"]
    assert len(set(frozen)) == 1  # its weights stay
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2 + len(rows)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("shortcut.json")}
    assert len(before) == 6
    main(given)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("shortcut.json")} == before
    assert capsys.readouterr().out == printed
