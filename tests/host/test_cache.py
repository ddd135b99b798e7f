"""What is kept in the user's cache can be seen, and deleted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.host import cache as kept_files
from harness.host.cache import KINDS, Kind, keep_document, kept_document

Command = Callable[..., Any]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "early-exit-harness"
    for name, size in (("model-1/model.safetensors", 700), ("model-1/config.json", 50), ("summaries/a.json.gz", 300)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"0" * size)
    return folder


def test_what_is_kept_is_listed_by_kind(cli: Command, cache: Path) -> None:
    listed = json.loads(cli("cache", "list", "--json").out)
    assert [(one["kind"], Path(one["path"]).name, one["bytes"]) for one in listed] == [
        ("converted", "model-1", 750),
        ("summaries", "a.json.gz", 300),
    ]
    shown = cli("cache", "list").out
    assert (
        "summaries: summaries of runs, for the next report or leaderboard of many; 0.00 MB in 1 of at most 10000."
        in shown
    )


def test_a_kind_or_everything_is_deleted(cli: Command, cache: Path) -> None:
    assert cli("cache", "clear", "summaries").code == 0
    assert not (cache / "summaries" / "a.json.gz").exists()
    assert (cache / "model-1" / "model.safetensors").exists()
    refused = cli("cache", "clear", "sumaries")
    assert refused.code == 2
    assert "unknown kind 'sumaries'. Did you mean 'summaries'?" in refused.err
    assert cli("cache", "clear").code == 0
    assert not (cache / "model-1").exists()
    assert "Nothing is kept." in cli("cache", "list").out


def test_what_somebody_else_put_there_is_not_followed(cli: Command, cache: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    (cache / "link").symlink_to(mine)
    assert cli("cache", "clear").code == 0
    assert (mine / "thesis.txt").read_text() == "mine"
    assert not (cache / "link").is_symlink()


def test_documents_are_bounded_and_the_least_used_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "choices", Kind("three", 3))
    for number in range(3):
        keep_document("choices", f"key{number}", {"value": number})
        os.utime(cache / "choices" / f"key{number}.json.gz", (number, number))
    (cache / "choices" / ".abandoned.part").touch()
    os.utime(cache / "choices" / ".abandoned.part", (1, 1))
    (cache / "choices" / ".writing.part").touch()
    assert kept_document("choices", "key0") == {"value": 0}  # is used again
    keep_document("choices", "key3", {"value": 3})
    assert {file.name for file in (cache / "choices").iterdir()} == {
        *("key0.json.gz", "key2.json.gz", "key3.json.gz", ".writing.part")
    }
    assert kept_document("choices", "key1") is None


def test_what_a_killed_process_left_goes_when_the_next_one_begins(cache: Path) -> None:
    (cache / "building-1").mkdir()
    with kept_files.own_folder("layers") as mine:
        assert (cache / "building-1").is_dir()  # its process may run
        os.utime(cache / "building-1", (1, 1))
        with kept_files.own_folder("building"):
            assert mine.is_dir()
        assert not (cache / "building-1").exists()
    assert not mine.exists()


def test_a_document_under_another_name_is_not_taken(cache: Path) -> None:
    keep_document("choices", "one", [1])
    (cache / "choices" / "one.json.gz").rename(cache / "choices" / "two.json.gz")
    assert kept_document("choices", "two") is None


WRITER = """
import sys
from harness.host.cache import keep_document, kept_document

for turn in range(20):
    for key in "ab":
        found = kept_document("choices", key)
        assert found is None or found == [key] * 20_000, found[:3]
        keep_document("choices", key, [key] * 20_000)
"""


def test_writers_at_the_same_time_leave_whole_documents(cache: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER], stderr=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said.decode()
    assert kept_document("choices", "a") == ["a"] * 20_000
    assert {file.name for file in (cache / "choices").iterdir()} == {"a.json.gz", "b.json.gz"}
