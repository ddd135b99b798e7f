"""The script that plots what a study adds to its points: every round is kept, and a picture is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study_cost import main, one_round


def test_every_round_is_kept_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--points", "2", "5", "--rounds", "2", "--folder", str(tmp_path / "made"), "--out", str(tmp_path)]
    main(options)
    found = json.loads((tmp_path / "study-cost.json").read_text())
    assert {points: len(rounds) for points, rounds in found["points"].items()} == {"2": 2, "5": 2}
    assert all(value > 0 for rounds in found["points"].values() for each in rounds for value in each.values())
    assert list((tmp_path / "made").iterdir()) == []
    assert (tmp_path / "study-cost.png").stat().st_size > 1000
    assert capsys.readouterr().out.count("bytes each, all of them again in") == 2


def test_what_is_written_for_a_point_is_its_share_of_the_two_files(tmp_path: Path) -> None:
    found = one_round(tmp_path / "s", 3)
    files = [(tmp_path / "s" / name).read_bytes() for name in ("study.json", "events.jsonl")]
    assert files[1].count(b"\n") == 2 * 3  # a finished study writes no line more
    assert found["written_bytes"] == sum(map(len, files)) / 3
