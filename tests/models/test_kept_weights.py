"""Packed weights that are kept on disk: the same model comes back, and nothing else does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.decoding import packing
from harness.decoding.engine import Engine
from harness.decoding.packing import tensors_of
from harness.host.cache import clear
from harness.models import kept_weights, model
from harness.models.model import LoadedModel, ResolvedModel
from strategies.full import Full


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where files are; the tiny models count as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packing, "ENOUGH", 0)
    monkeypatch.setattr(model, "prepare", lambda *given: None)
    return tmp_path / "early-exit-harness" / "packed"


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Says how often weights were read."""
    read: list[str] = []
    real = model.read_weights

    def counted(spec: Any, dtype: str) -> Any:
        read.append(spec.name)
        return real(spec, dtype)

    monkeypatch.setattr(model, "read_weights", counted)
    return read


def pretrained(resolved: Callable[..., ResolvedModel], path: Path, **changes: Any) -> ResolvedModel:
    return resolved(str(path), weights="pretrained", **{"weights_format": "fp16"} | changes)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def same(one: LoadedModel, other: LoadedModel) -> bool:
    mine, theirs = tensors_of(one.backbone), tensors_of(other.backbone)
    assert mine is not None
    assert theirs is not None
    return list(mine) == list(theirs) and all(
        mine[name].kind == theirs[name].kind and torch.equal(mine[name].tensor, theirs[name].tensor) for name in mine
    )


def decoded(loaded: LoadedModel) -> list[int]:
    engine = Engine(loaded.backbone, loaded.info)
    return engine.decode([[5, 6, 7, 8]], Full(), kv="recompute", max_new_tokens=[6])[0].token_ids


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_second_reading_gives_the_same_model_without_the_weights(
    resolved: Any, make_model: Callable[..., Path], family: str, folder: Path, unpacked: list[str]
) -> None:
    formats = ["fp16", "int8", "int4"]
    found = pretrained(resolved, make_model(family))
    first = found.load_all("cpu", formats=formats)
    assert len(files(folder)) == len(formats)
    second = found.load_all("cpu", formats=formats)
    assert len(unpacked) == 1
    for one, other in zip(first, second, strict=True):
        assert same(one, other)
        assert decoded(one) == decoded(other)
        assert one.info == other.info
        assert (one.weights_source, one.weights_sha256) == (other.weights_source, other.weights_sha256)
        assert one.backbone.heads == other.backbone.heads
    int8, int4 = second[1].backbone, second[2].backbone
    assert int4.lm_head.data.data_ptr() == int8.lm_head.data.data_ptr()  # type: ignore[attr-defined]
    assert int4.embed.words.data_ptr() == second[0].backbone.embed.words.data_ptr()


def test_what_auto_takes_is_found_again(
    resolved: Any, tiny_llama: Path, folder: Path, unpacked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        packing, "_time_all", lambda tried, matrices: {name: (0.5 if name == "fp16" else 1.0,) * 3 for name in tried}
    )
    found = pretrained(resolved, tiny_llama, weights_format="auto")
    first, second = found.load("cpu"), found.load("cpu")
    assert [one.info.weights_format for one in (first, second)] == ["fp16", "fp16"]
    assert len(unpacked) == 1
    assert [one.format_choice.measured != "" for one in (first, second)] == [False, True]
    notes: list[str] = []
    monkeypatch.setattr(packing, "_time_all", lambda tried, matrices: dict.fromkeys(tried, (1.0,) * 3))
    assert found.load("cpu", notes.append).format_choice == second.format_choice, "nothing is timed again"
    assert any(note.startswith("taking fp16, which was the fastest on 2") for note in notes)
    clear(frozenset({"choices"}))
    assert [found.load("cpu").info.weights_format for _ in "ab"] == ["float32"] * 2  # which needs the weights
    assert len(unpacked) == 3


def test_a_file_in_large_pages_is_mapped_and_any_other_copied(
    resolved: Any, tiny_llama: Path, folder: Path, unpacked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pretrained(resolved, tiny_llama)
    first, copied = found.load("cpu"), found.load("cpu")
    monkeypatch.setattr(kept_weights, "_in_large_pages", lambda data: True)
    mapped = found.load("cpu")
    assert same(first, copied)
    assert same(first, mapped)
    places = [one.backbone.blocks[0].qkv.data.data_ptr() for one in (copied, mapped)]  # type: ignore[attr-defined]
    assert [place % 64 for place in places] == [0, 0]
    assert [_is_of_file(place, files(folder)[0]) for place in places] == [False, True]
    assert decoded(first) == decoded(copied) == decoded(mapped)


def _is_of_file(address: int, file: Path) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line.endswith(str(file))
    return False


def test_another_model_or_format_is_another_file(
    resolved: Any, tiny_llama: Path, tmp_path: Path, folder: Path, unpacked: list[str]
) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    pretrained(resolved, other).load("cpu")
    pretrained(resolved, other, weights_format="int8").load("cpu")
    stored = load_file(other / "model.safetensors")
    stored["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    save_file(stored, other / "model.safetensors", {"format": "pt"})
    pretrained(resolved, other).load("cpu")
    assert len(files(folder)) == len(unpacked) == 3


def test_a_wrong_file_is_one_note_and_made_again(
    resolved: Any, tiny_llama: Path, folder: Path, unpacked: list[str]
) -> None:
    found = pretrained(resolved, tiny_llama)
    first = found.load("cpu")
    (file,) = files(folder)
    whole = file.read_bytes()
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    foreign, other = (tiny_llama / "model.safetensors").read_bytes(), whole.replace(file.stem.encode(), b"0" * 32)
    for number, content in enumerate((whole[:-100], flipped, foreign, other, b"")):
        file.write_bytes(content)
        notes: list[str] = []
        again = found.load("cpu", notes.append)
        (said,) = [note for note in notes if "again" in note]
        assert said.startswith(f"packing {found.info.name} again, since {file} is not what it was (")
        assert same(first, again)
        found.load("cpu")
        assert len(unpacked) == number + 2


def test_rows_that_are_one_short_are_not_read_beyond_their_end(
    resolved: Any, tiny_llama: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_short(backbone: Any) -> Any:
        tensors = tensors_of(backbone)
        assert tensors is not None
        tensors["2.mlp_in"] = type(tensors["2.mlp_in"])(tensors["2.mlp_in"].tensor[1:], "Fp16")
        return tensors

    found, notes = pretrained(resolved, tiny_llama), list[str]()
    with monkeypatch.context() as patched:
        patched.setattr(kept_weights, "tensors_of", one_short)
        first = found.load("cpu")
    assert same(first, found.load("cpu", notes.append))
    assert any("2.mlp_in is Fp16" in note for note in notes)


def test_a_disk_that_cannot_be_written_is_a_note(resolved: Any, tiny_llama: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")
    notes: list[str] = []
    assert decoded(pretrained(resolved, tiny_llama).load("cpu", notes.append))
    assert sum("are not kept" in note for note in notes) == 1


def test_small_and_random_models_are_not_kept(
    resolved: Any, tiny_llama: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved(str(tiny_llama), weights_format="fp16").load("cpu")
    pretrained(resolved, tiny_llama, weights_format="float32").load("cpu")
    pretrained(resolved, tiny_llama, weights_format="bfloat16").load("cpu")
    monkeypatch.setattr(packing, "ENOUGH", 1 << 30)
    pretrained(resolved, tiny_llama).load("cpu")
    assert not files(folder)
