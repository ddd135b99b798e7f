"""What tells weights apart: every byte of their files, the hub's commit, and nothing of whoever reads them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.contracts import ModelRequest
from harness.models import facts
from harness.models.facts import fingerprint_of_files
from harness.models.folder import commit_of
from harness.models.model import resolve
from harness.models.weights import read_weights

COMMITS = ("1" * 40, "2" * 40)


def fingerprint(name: str, **changes: Any) -> str:
    return resolve(ModelRequest(name, **changes)).info.fingerprint


def copy_with_one_number_changed(folder: Path, target: Path) -> Path:
    """In the middle of its weights."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[tensors[name].numel() // 2] += 1.0
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_one_number_anywhere_tells_weights_apart(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where files are longer than what is read of them at a time."""
    monkeypatch.setattr(facts, "_EDGE", 64)
    same = shutil.copytree(tiny_llama, tmp_path / "same")
    other = copy_with_one_number_changed(tiny_llama, tmp_path / "other")
    assert fingerprint(str(same)) == fingerprint(str(tiny_llama))
    assert fingerprint(str(other)) != fingerprint(str(tiny_llama))


def test_a_long_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(facts, "_WORTH_KEEPING", 1)
    file, read = tmp_path / "model.safetensors", []
    there = hashlib.file_digest

    def noting(*given: Any) -> Any:
        read.append(1)
        return there(*given)

    monkeypatch.setattr(facts.hashlib, "file_digest", noting)
    save_file({"w": torch.zeros(4)}, file)
    first = fingerprint_of_files([file])
    assert fingerprint_of_files([file]) == first
    assert len(read) == 1
    save_file({"w": torch.ones(4)}, file)
    assert fingerprint_of_files([file]) != first
    assert len(read) == 2


def test_a_damaged_file_of_any_size_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as content:
        content.truncate(1 << 40)
    assert len(fingerprint_of_files([file])) == 16


@pytest.fixture
def hub(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with two commits of one model, alike but for their weights."""
    root = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(tiny_llama, root / "snapshots" / COMMITS[0])
    copy_with_one_number_changed(tiny_llama, root / "snapshots" / COMMITS[1])
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return root


def test_the_commit_tells_weights_of_the_hub_apart(hub: Path) -> None:
    found = resolve(ModelRequest("me/tiny"))
    assert commit_of("me/tiny") == COMMITS[0]
    _, source = read_weights(found.spec, "float32")
    assert source == f"me/tiny at {COMMITS[0][:12]}"
    (hub / "refs" / "main").write_text(COMMITS[1])
    assert fingerprint("me/tiny") != found.info.fingerprint


@pytest.mark.parametrize("weights", ["auto", "random"])
def test_a_version_of_transformers_does_not(hub: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint("me/tiny", weights=weights)
    monkeypatch.setattr("transformers.configuration_utils.__version__", "99.0.0")
    for file in hub.glob("snapshots/*/config.json"):  # nor the version that wrote it
        file.write_text(json.dumps(json.loads(file.read_text()) | {"transformers_version": "1.0"}))
    assert fingerprint("me/tiny", weights=weights) == before


def test_a_folder_has_no_commit(tiny_llama: Path) -> None:
    assert commit_of(str(tiny_llama)) is None
