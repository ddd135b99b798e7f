"""A paper's numbers beside runs: ``harness report --against``."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.mark.slow
def test_runs_are_shown_beside_the_paper_and_written(
    cli: Command, tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = cli(
        "run", "--model", str(tiny_llama), "--source", str(rows_file), "--limit", "5", "--energy", "none", "--kv",
        "propagate,none", "--strategy", "fixed:layer=6", "--protocol", "green-code", "--out", "runs/one",
    )  # fmt: skip
    assert made.code == 0, made.err
    ran = cli("report", "runs", "--against", "green-code", "--out", "beside", "--width", "column")
    assert ran.code == 0, ran.err
    for words in (
        "paper, OPT-2.7B, KV none",
        "files, OPT-2.7B, KV propagate",
        "here, KV propagate",
        "fixed:layer=6",
    ):
        assert words in ran.out
    files = {path.name for path in (tmp_path / "beside").iterdir()}
    stems = [name.removesuffix(".csv") for name in files if name.endswith(".csv")]
    assert files == {"green-code.md", *(f"{stem}.csv" for stem in stems), *(
        f"{stem.replace('grid', kind)}.{suffix}" for stem in stems for kind in ("grid", "cache")
        for suffix in ("svg", "pdf", "png"))}  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "beside" / f"{stems[0]}.csv").read_text(encoding="utf-8").splitlines()))
    (full,) = [row for row in rows if (row["setting"], row["paper_model"], row["kv"]) == ("full depth", "", "none")]
    assert (full["time_saving"], full["time_of_uncached"]) == ("0.0", "1.0")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "runs", "--against", "brown-code"], "unknown paper 'brown-code'"),
        (["report", "runs", "--against", "green-code", "--stored"], "--against goes with --out and --width alone"),
        (["report", "runs", "--against", "green-code", "--width", "text"], "figures are of a report in a folder"),
        (["report", "runs", "--against", "green-code"], "no run has early exits under the protocol green-code"),
    ],
)
def test_what_cannot_be_shown_is_one_line(cli: Command, words: list[str], said: str) -> None:
    assert said in cli(*words).error
