"""Exits from the start or afterwards, on a few thousand tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from from_scratch import main


@pytest.mark.slow
def test_both_models_read_the_same_tokens_and_are_made_once(
    corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scratch"
    given = [
        "--out", str(out), "--task", "py150", "--source", str(corpus_file), "--documents", "60", "--width", "32",
        "--layers", "6", "--vocabulary", "320", "--tokens", "5120", "--length", "128", "--batch", "4",
        "--test-documents", "8", "--new-tokens", "16", "--exit", "2", "4", "--draft", "1", "3",
    ]  # fmt: skip
    main(given)
    tunings = {name: json.loads((out / name / "tuning.json").read_text()) for name in ("plain", "lite", "layerskip")}
    assert {name: (facts["steps"], facts["tokens"]) for name, facts in tunings.items()} == {
        "plain": (8, 4096), "lite": (10, 5120), "layerskip": (10, 5120),
    }  # fmt: skip
    assert tunings["lite"]["ngrams"] == tunings["layerskip"]["ngrams"]  # of just the same texts
    assert tunings["lite"]["exits"]["before"] == tunings["plain"]["exits"]["after"]
    plain, skip = (tunings[name]["exits"]["before"] for name in ("plain", "layerskip"))
    assert plain == skip  # both begin at the same weights

    made = json.loads((out / "from-scratch.json").read_text())
    assert [row["trained"] for row in made["exits"]] == ["plain", "plain, then LITE", "LayerSkip"]
    for row in made["exits"]:
        assert list(row["agreement"]) == ["1", "2", "3", "4", "5"]
        assert 1 <= row["oracle"]["low"] <= row["oracle"]["value"] <= row["oracle"]["high"] <= 6
    for row in made["drafts"]:
        assert 1 <= row["tokens_per_verification"] <= 1 + row["options"]["length"]
    assert len(made["drafts"]) == 3 * 4
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == (2 + 3) + 1 + (2 + 3 * 2)
    weights = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    main(given)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == weights
    assert capsys.readouterr().out == printed
