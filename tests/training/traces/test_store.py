"""A trace on disk: whole shards or none, never one of something else, and mapped when it is read."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ModelInfo
from harness.errors import ArtefactError, ResumeError
from harness.training.traces.store import Traces, TraceWriter
from tests.run_files import write_index
from tests.training.tracing import FACTS

EXITS, WIDTH = (4, 6), 8
NAMES = ("hidden", "last", "top", "top1", "top2", "entropy", "final", "final1", "input", "position")
SHARD = 20


def columns(number: int, tokens: int) -> dict[str, Tensor]:
    """Every column of one document; another number, other values."""
    chance = torch.Generator().manual_seed(number)
    shapes: dict[str, tuple[int, ...]] = {"hidden": (len(EXITS), WIDTH), "last": (WIDTH,)}
    shapes |= dict.fromkeys(("top", "top1", "top2", "entropy"), (len(EXITS),))
    made = {}
    for name in NAMES:
        shape = (tokens, *shapes.get(name, ()))
        whole = name in ("top", "final", "input", "position")
        made[name] = (
            torch.randint(300, shape, generator=chance, dtype=torch.int32)
            if whole
            else torch.randn(shape, generator=chance).half()
        )
    return made


def writer(folder: Path, *, resume: bool = False, **changes: Any) -> TraceWriter:
    return TraceWriter(folder, FACTS | changes, resume=resume, shard_tokens=SHARD)


def write(folder: Path, lengths: Sequence[int], *, first: int = 0, resume: bool = False) -> TraceWriter:
    """Add documents of these lengths, numbered from ``first``, without the last flush."""
    made = writer(folder, resume=resume)
    for number, tokens in enumerate(lengths, start=first):
        made.add(
            {"id": f"doc-{number}", "stream": "toy", "key": f"k{number}", "length": tokens}, columns(number, tokens)
        )
    return made


def expected(lengths: Sequence[int]) -> dict[str, Tensor]:
    parts = [columns(number, tokens) for number, tokens in enumerate(lengths)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in NAMES}
    numbers = [torch.full((tokens,), number, dtype=torch.int32) for number, tokens in enumerate(lengths)]
    return whole | {"document": torch.cat(numbers)}


def assert_holds(folder: Path, lengths: Sequence[int]) -> None:
    """The folder reads as a trace of exactly these documents."""
    traces = Traces.open(folder)
    want = expected(lengths)
    got = traces.columns(*want)
    for name, column in want.items():
        assert got[name].dtype == column.dtype, name
        assert torch.equal(got[name], column), name
    assert traces.tokens == sum(lengths)
    assert [(d["id"], d["tokens"]) for d in traces.documents] == [(f"doc-{n}", t) for n, t in enumerate(lengths)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------ round trip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    lengths = (12, 9, 30, 3, 1)
    write(tmp_path / "t", lengths).flush()
    assert_holds(tmp_path / "t", lengths)
    traces = Traces.open(tmp_path / "t" / "index.json")
    assert traces.exit_points == EXITS
    assert {key: traces.index[key] for key in FACTS} == FACTS
    assert [(d["stream"], d["key"], d["length"]) for d in traces.documents][1] == ("toy", "k1", 9)


def test_a_shard_is_written_as_soon_as_it_is_full(tmp_path: Path) -> None:
    made = write(tmp_path / "t", (12, 9, 30, 3))
    assert made.tokens == 12 + 9 + 30
    assert made.documents == ["doc-0", "doc-1", "doc-2"]
    assert_holds(tmp_path / "t", (12, 9, 30))  # the last one waits in memory
    assert sorted(files(tmp_path / "t")) == ["index.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    made.flush()
    assert [shard["tokens"] for shard in Traces.open(tmp_path / "t").index["shards"]] == [21, 30, 3]


# ---------------------------------------------------------------------------------------- resume


def test_resume_goes_on_where_the_shards_end(tmp_path: Path) -> None:
    """However many documents were added when it stopped: those in no shard are to be added again."""
    lengths = (12, 9, 30, 3, 22)
    for stop, kept in ((1, 0), (2, 2), (4, 3)):
        folder = tmp_path / str(stop)
        assert len(write(folder, lengths[:stop]).documents) == kept
        write(folder, lengths[kept:], first=kept, resume=True).flush()
        assert_holds(folder, lengths)


def test_a_trace_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "t", (12, 9)).flush()
    before = files(tmp_path / "t")
    with pytest.raises(ArtefactError, match=r"holds a trace already\. Add --resume to go on, or give another --out"):
        writer(tmp_path / "t")
    assert files(tmp_path / "t") == before


def test_other_facts_are_refused_with_both_values(tmp_path: Path) -> None:
    write(tmp_path / "t", (12, 9)).flush()
    before = files(tmp_path / "t")
    for key, value in (("model_fingerprint", "c" * 16), ("exit_points", [4, 6, 10]), ("length", 128)):
        with pytest.raises(ResumeError) as refusal:
            writer(tmp_path / "t", resume=True, **{key: value})
        assert f"is a trace with {key} {FACTS[key]!r}, now it is {value!r}. Give another --out." in str(refusal.value)
    assert files(tmp_path / "t") == before


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("weights")
    for resume in (False, True):
        with pytest.raises(ResumeError, match=r" is not empty and holds no trace\. Give another --out\."):
            writer(tmp_path, resume=resume)
    assert files(tmp_path) == {"model.safetensors": b"weights"}


# ----------------------------------------------------------------------------- kills and full disks


def test_a_kill_between_shard_and_index_loses_that_shard_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, lengths = tmp_path / "t", (12, 9, 30, 3)
    write(folder, lengths[:2])
    real = os.replace

    def kill(source: Path, target: Path) -> None:
        if Path(target).name == "index.json":
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            write(folder, lengths[2:], first=2, resume=True)
    assert (folder / "shard-00001.safetensors").is_file()  # whole, but listed nowhere
    assert_holds(folder, lengths[:2])
    write(folder, lengths[2:], first=2, resume=True).flush()
    assert_holds(folder, lengths)


class FullDisk:
    """Takes whole writes up to a number, then half a one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
        self.left, self._real = writes, Path.write_bytes
        disk = self

        def write_bytes(path: Path, data: bytes) -> int:
            if not disk.left:
                disk._real(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            disk.left -= 1
            return disk._real(path, data)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("writes", [0, 1])
def test_a_full_disk_is_one_line_and_finished_shards_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Full at the shard, or between the shard and the index."""
    folder, lengths = tmp_path / "t", (12, 9, 30, 3)
    made = write(folder, lengths[:2])
    with monkeypatch.context() as patch:
        FullDisk(patch, writes)
        with pytest.raises(ArtefactError) as refusal:
            made.add({"id": "doc-2", "stream": "toy", "key": "k2", "length": 30}, columns(2, 30))
    message = str(refusal.value)
    assert "No space left on device" in message
    assert "shard-00001.safetensors" in message
    assert "The finished shards (21 tokens) stay usable; make room and go on with --resume." in message
    assert "\n" not in message
    assert not list(folder.glob(".*.part"))
    assert_holds(folder, lengths[:2])
    assert (made.tokens, made.documents) == (21, ["doc-0", "doc-1"])
    write(folder, lengths[2:], first=2, resume=True).flush()  # room was made
    assert_holds(folder, lengths)


# ---------------------------------------------------------------------------------------- damage


def resume_of(folder: Path) -> TraceWriter:
    return writer(folder, resume=True)


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    """Twenty at random in shards, one in every part of the index; a quarter of a shard zeroed, a byte more or less."""
    folder, chance = tmp_path / "t", random.Random(3)
    write(folder, (12, 9, 30, 3, 22)).flush()
    Traces.open(folder).columns("final")
    whole = files(folder)
    shards = [name for name in sorted(whole) if name.startswith("shard-")]
    flips = [(name := chance.choice(shards), chance.randrange(8 * len(whole[name]))) for _ in range(20)]
    flips += [("index.json", place) for place in range(0, 8 * len(whole["index.json"]), 127)]
    quarter = bytearray(whole[shards[1]])
    quarter[len(quarter) // 2 : 3 * len(quarter) // 4] = bytes(len(quarter) // 4)
    damaged = [(shards[1], bytes(quarter)), (shards[1], whole[shards[1]][:-1]), (shards[1], whole[shards[1]] + b"\0")]
    for name, place in flips:
        content = bytearray(whole[name])
        content[place // 8] ^= 1 << place % 8
        damaged.append((name, bytes(content)))
    for name, content in damaged:
        (folder / name).write_bytes(content)
        for read in (Traces.open, resume_of):
            with pytest.raises(ArtefactError) as refusal:
                read(folder)
            assert str(folder / name) in str(refusal.value)
            assert "Trace again with another --out" in str(refusal.value)
            assert isinstance(refusal.value, ResumeError) == (read is resume_of)
        (folder / name).write_bytes(whole[name])
    assert_holds(folder, (12, 9, 30, 3, 22))


def test_a_folder_without_a_trace_names_the_command(tmp_path: Path) -> None:
    for model, given in {"": "", "my model": " --model 'my model'"}.items():
        with pytest.raises(ArtefactError, match="there is no trace") as refusal:
            Traces.open(tmp_path / "t", model)
        assert refusal.value.commands == (f"harness trace{given} --out {tmp_path / 't'}",)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    with pytest.raises(ArtefactError, match="there is no trace") as refusal:
        Traces.open(tmp_path / "model")
    assert refusal.value.commands == (f"harness trace --out {tmp_path / 'model-2'}",)


EMPTY: dict[str, Any] = {"format": 2, **FACTS, "shards": [], "documents": []}


def test_an_index_that_is_none(tmp_path: Path) -> None:
    contents = {"{": "is not JSON", "[]": "no trace index of format 2", "{}": "no trace index of format 2"}
    for content, said in contents.items():
        (tmp_path / "index.json").write_text(content, encoding="utf-8")
        for read in (Traces.open, resume_of):
            with pytest.raises(ArtefactError, match=rf"index\.json.*{said}.*Trace again"):
                read(tmp_path)
        assert files(tmp_path) == {"index.json": content.encode()}
    needed = EMPTY.keys() - {"format", "length"}
    for index in (EMPTY | {"format": 3}, *({n: v for n, v in EMPTY.items() if n != gone} for gone in sorted(needed))):
        write_index(tmp_path, index)
        with pytest.raises(ArtefactError, match="no trace index of format 2"):
            Traces.open(tmp_path)


def test_a_trace_without_a_token_can_only_be_gone_on_with(tmp_path: Path) -> None:
    write_index(tmp_path, EMPTY)
    with pytest.raises(ArtefactError, match=r"holds no token\. Go on with `harness trace … --resume`"):
        Traces.open(tmp_path)
    write(tmp_path, (12, 9), resume=True).flush()
    assert_holds(tmp_path, (12, 9))


# ----------------------------------------------------------------------------------------- check

INFO = ModelInfo(
    name="mine", family="llama", num_layers=8, hidden_size=WIDTH, vocab_size=300, exit_points=EXITS, max_positions=64,
    dtype="float32", weights="pretrained", layer_bytes=1, lm_head_bytes=1, kv_projection_bytes=1, kv_entry_bytes=1,
    fingerprint="a" * 16, base_fingerprint="a" * 16,
)  # fmt: skip


def test_the_trace_of_another_model_is_refused_with_both_values(tmp_path: Path) -> None:
    write(tmp_path / "t", (12,)).flush()
    changes: tuple[tuple[dict[str, Any], str, str, str], ...] = (
        ({"fingerprint": "c" * 16}, "b" * 16, "model fingerprint " + "a" * 16, "c" * 16),
        ({}, "c" * 16, "tokenizer " + "b" * 16, "c" * 16),
        ({"exit_points": (4, 6, 7)}, "b" * 16, "exit points [4, 6]", "[4, 6, 7]"),
        ({"exit_head": "shortcut:0123"}, "b" * 16, "exit head shared", "shortcut:0123"),
    )
    for change, tokenizer, theirs, ours in changes:
        with pytest.raises(ArtefactError) as refusal:
            Traces.open(tmp_path / "t").check(replace(INFO, **change), tokenizer)
        message = str(refusal.value)
        assert f"is a trace with {theirs} (toy); mine has {ours} now." in message
        assert f"`harness trace --model mine --out {tmp_path / 't-2'}`" in message
