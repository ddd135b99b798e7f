"""Files of others are read with care, and report files are replaced whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import ConfigError, StoreError
from reports.collection import check_folder, read_calibration
from reports.files import replace_file
from reports.leaderboard.site import MARK, Site, read_script
from reports.training_logs import read_training, training_folders

Put = Callable[[Path], str]

BROKEN = (
    b"{", b"[]", b"5", b"\xff", b"[" * 5000, b'{"a": 1e999}', b'{"a": NaN}', b'{"a": ' + b"1" * 5000 + b"}",
    b'{"a": "\\ud800"}',
)  # fmt: skip


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises((StoreError, ConfigError)) as refused:
        act()
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_what_is_no_file_is_not_opened(tmp_path: Path, put: Put) -> None:
    said = put(tmp_path / "calibration.json")
    assert said in refusal(lambda: read_calibration(tmp_path))
    said = put(tmp_path / "data.js")
    assert said in refusal(lambda: read_script(tmp_path / "data.js", "run"))


@pytest.mark.parametrize("broken", BROKEN, ids=lambda value: repr(value)[:30])
def test_a_calibration_or_a_data_file_that_is_none_is_refused(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "calibration.json").write_bytes(broken)
    assert "calibration.json is no calibration: " in refusal(lambda: read_calibration(tmp_path))
    (tmp_path / "data.js").write_bytes(b'leaderboardData("run",' + broken + b");\n")
    if broken not in (b"[]", b"5"):
        assert "data.js" in refusal(lambda: read_script(tmp_path / "data.js", "run"))


def test_a_site_s_mark_is_read_with_care(tmp_path: Path, put: Put) -> None:
    said = put(tmp_path / MARK)
    if not said.startswith("Too many"):
        assert said in refusal(lambda: Site(tmp_path, merge=True))


def test_a_report_s_folder_with_what_is_no_file_is_refused(tmp_path: Path, put: Put) -> None:
    said = put(tmp_path / "index.html")
    if not said.startswith("Too many"):
        assert "index.html is not of a report of this harness" in refusal(lambda: check_folder(tmp_path))


def test_a_training_with_what_is_no_file_is_told_in_one_line(tmp_path: Path, put: Put) -> None:
    for name in ("training.jsonl", "rl-training.jsonl", "adapter.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / "training.jsonl").write_text('{"step": 1, "cross_entropy": {"4": 1.0}}\n')
        said = put(folder / name)
        logs = read_training(folder)
        if name != "adapter.json" and not said.startswith("Too many"):
            assert any(said in problem for problem in logs.problems)
        assert training_folders([], [folder])


@pytest.mark.parametrize("broken", BROKEN, ids=lambda value: repr(value)[:30])
def test_a_line_of_a_log_that_is_none_is_counted(tmp_path: Path, broken: bytes) -> None:
    good = b'{"step": 1, "cross_entropy": {"4": 1.0}}\n'
    (tmp_path / "training.jsonl").write_bytes(good + broken + b"\n" + good.replace(b"1,", b"2,"))
    logs = read_training(tmp_path)
    assert logs.lite is not None
    assert [step.step for step in logs.lite.steps] == [1, 2]
    assert logs.problems == (f"1 of 3 lines of {tmp_path / 'training.jsonl'} are damaged and left out.",)


@pytest.mark.parametrize(("failure", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, StoreError)])
def test_a_stop_in_the_middle_keeps_the_old_file_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], raised: type[BaseException]
) -> None:
    (tmp_path / "report.md").write_text("old")

    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:1])
        raise failure

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(raised):
        replace_file(tmp_path / "report.md", b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.md": "old"}
