"""Run directories as reports read them: whatever of many can be read, and what is wrong with the rest."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.reading import find_runs, read_run, read_runs
from harness.store import LOCK

Command = Callable[..., Any]


@pytest.fixture
def finished(tiny_run: Command, tmp_path: Path) -> Path:
    """A small finished run."""
    assert tiny_run("--out", tmp_path / "runs" / "one").code == 0
    return tmp_path / "runs" / "one"


def test_a_finished_run_has_nothing_to_say(finished: Path) -> None:
    run = read_run(finished)
    assert run.state == ""
    assert run.name == "one"
    assert run.windows_finished == run.windows_expected == 3
    assert read_run(finished, stored=True).summary == run.summary


def test_token_texts_join_to_what_was_spoken(finished: Path) -> None:
    for sample in read_run(finished).samples:
        assert len(sample.token_texts) == len(sample.token_ids)
        assert "".join(sample.token_texts).startswith(sample.text)


def test_a_run_that_lacks_windows_says_so(finished: Path) -> None:
    file = finished / "windows.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert read_run(finished).state == "not finished: 2 of 3 windows"
    with (finished / LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(finished).state == "still being written: 2 of 3 windows"


def test_the_rest_is_read_when_one_cannot_be(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "manifest.json").write_text("{")
    runs, refused = read_runs([tmp_path / "runs", finished, tmp_path / "nothing"])
    assert [run.directory for run in runs] == [finished]
    assert [refusal.directory.name for refusal in refused] == ["damaged", "nothing"]
    assert "not JSON" in refused[0].reason
    assert "does not exist" in refused[1].reason


def test_each_run_is_found_once(finished: Path, tmp_path: Path) -> None:
    assert find_runs([finished, tmp_path / "runs", tmp_path]) == [finished]


def test_a_run_without_a_window_is_refused(finished: Path) -> None:
    (finished / "windows.jsonl").unlink()
    with pytest.raises(StoreError, match="no finished window yet"):
        read_run(finished)
