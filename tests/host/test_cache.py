"""What is kept in the user's cache can be seen, and deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    assert "packed: weights packed for decoding, adapter merged; 0.00 MB in 1." in shown


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
