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
    for name, size in (("model-1/model.safetensors", 700), ("model-1/config.json", 50), ("packed/a.safetensors", 300)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"0" * size)
    return folder


def test_what_is_kept_is_listed_by_kind(cli: Command, cache: Path) -> None:
    listed = json.loads(cli("cache", "list", "--json").out)
    assert [(one["kind"], Path(one["path"]).name, one["bytes"]) for one in listed] == [
        ("converted", "model-1", 750),
        ("packed", "a.safetensors", 300),
    ]
    shown = cli("cache", "list").out
    assert "packed: weights packed for decoding, adapter merged; 0.00 MB in 1 of at most 6." in shown


def test_a_kind_or_everything_is_deleted(cli: Command, cache: Path) -> None:
    assert cli("cache", "clear", "packed").code == 0
    assert not (cache / "packed" / "a.safetensors").exists()
    assert (cache / "model-1" / "model.safetensors").exists()
    refused = cli("cache", "clear", "pakced")
    assert refused.code == 2
    assert "unknown kind 'pakced'. Did you mean 'packed'?" in refused.err
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


def test_without_a_cache_nothing_is_kept(cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert "Nothing is kept." in cli("cache", "list").out
    assert "0.00 MB freed." in cli("cache", "clear").out


def test_documents_are_bounded_and_the_least_used_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "observed", Kind("three", 3))
    for number in range(3):
        keep_document("observed", f"key{number}", {"value": number})
        os.utime(cache / "observed" / f"key{number}.json", (number, number))
    (cache / "observed" / ".abandoned.part").touch()
    os.utime(cache / "observed" / ".abandoned.part", (1, 1))
    (cache / "observed" / ".writing.part").touch()
    assert kept_document("observed", "key0") == {"value": 0}  # is used again
    keep_document("observed", "key3", {"value": 3})
    assert {file.name for file in (cache / "observed").iterdir()} == {
        *("key0.json", "key2.json", "key3.json", ".writing.part")
    }
    assert kept_document("observed", "key1") is None


KILLED = """
import os
import sys
from harness.host.cache import KINDS, being_written, cache_folder, own_folder

with own_folder("building") as folder, being_written(cache_folder() / "packed" / "b.safetensors") as part:
    (folder / "model.safetensors").write_bytes(b"0" * 99)
    part.write_bytes(b"0" * 99)
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_goes_when_the_next_one_begins(cache: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED], check=False)
    with kept_files.own_folder("layers") as mine, kept_files.being_written(cache / "packed" / "c") as part:
        assert not list(cache.glob("building-*"))
        kept_files.drop_old("packed")
        with kept_files.own_folder("building"):
            assert mine.is_dir()  # its process runs
        assert set((cache / "packed").iterdir()) == {cache / "packed" / "a.safetensors", part}
    assert not mine.exists()


def test_a_document_under_another_name_is_not_taken(cache: Path) -> None:
    keep_document("observed", "one", [1])
    (cache / "observed" / "one.json").rename(cache / "observed" / "two.json")
    assert kept_document("observed", "two") is None


def test_nothing_unfinished_is_left_by_a_disk_that_is_full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_files.os, "replace", full)
    keep_document("observed", "one", [1])
    assert list((cache / "observed").iterdir()) == []


WRITER = """
import sys
from harness.host.cache import keep_document, kept_document

for turn in range(60):
    for key in "ab":
        found = kept_document("observed", key)
        assert found is None or found == [key] * 20_000, found[:3]
        keep_document("observed", key, [key] * 20_000)
"""


def test_writers_at_the_same_time_leave_whole_documents(cache: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER], stderr=subprocess.PIPE) for _ in range(3)]
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said.decode()
    assert kept_document("observed", "a") == ["a"] * 20_000
    assert {file.name for file in (cache / "observed").iterdir()} == {"a.json", "b.json"}
