"""Two processes make the trace that one makes: the same records, in the same order."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ArtefactError, ConfigError
from harness.training.processes import own_device
from harness.training.traces.record_trace import merge_parts, own_part
from harness.training.traces.store import Traces, TraceWriter
from tests.training.traces.test_record_trace import assert_same, rows_of, tracer

DOCUMENTS = 7


@pytest.fixture(scope="module")
def alone(tiny_llama: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Traces:
    return tracer(tiny_llama, corpus_file, tmp_path_factory.mktemp("alone") / "t", documents=DOCUMENTS)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``part(out, trace, rank, documents)``: what a process of two has on disk when it is ended after so many."""

    def write(out: Path, whole: Traces, rank: int, documents: int) -> None:
        facts = {name: value for name, value in whole.index.items() if name not in ("format", "shards", "documents")}
        writer = TraceWriter(own_part(out, rank, 2, resume=True), facts, resume=True)
        for (_, columns), described in list(zip(rows_of(whole), whole.documents, strict=True))[rank::2][:documents]:
            kept = {name: column for name, column in columns.items() if name != "document"}
            writer.add({name: value for name, value in described.items() if name != "tokens"}, kept)
            writer.flush()

    return write


@pytest.mark.slow
def test_two_processes_make_the_trace_of_one(
    alone: Traces, part: Callable[..., None], tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    """As `torchrun` starts them, going on where one of them had been ended."""
    command = ["trace", "--model", tiny_llama, "--task", "py150", "--source", corpus_file, "--documents", DOCUMENTS]
    command += ["--length", 60, "--weights", "pretrained", "--exit-head", "shared", "--device", "cpu", "--out", "t"]
    part(tmp_path / "t", alone, 1, 2)
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "harness.cli",
         *map(str, command), "--resume"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count(f"documents are in {Path('t')}") == 1
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["index.json", "shard-00000.safetensors"]
    assert_same(Traces.open(tmp_path / "t"), alone)


def test_parts_are_merged_in_the_order_of_one_process(alone: Traces, part: Callable[..., None], tmp_path: Path) -> None:
    """Also where a kill came in the midst of merging: what is there already is not there twice."""
    out = tmp_path / "t"
    for rank in range(2):
        part(out, alone, rank, DOCUMENTS)
    order = [str(document["id"]) for document in alone.documents]
    kept = tmp_path / "kept"
    shutil.copytree(out / "parts", kept)
    facts = {name: value for name, value in alone.index.items() if name not in ("format", "shards", "documents")}

    def writer(**changes: Any) -> TraceWriter:
        return TraceWriter(out, facts, resume=(out / "index.json").is_file(), **changes)

    merge_parts(out, writer(), order)
    assert not (out / "parts").exists()
    assert_same(Traces.open(out), alone)
    shutil.copytree(kept, out / "parts")
    merge_parts(out, writer(), order)
    assert_same(Traces.open(out), alone)


def test_parts_are_gone_on_with_by_as_many_processes(alone: Traces, part: Callable[..., None], tmp_path: Path) -> None:
    part(tmp_path / "t", alone, 0, 1)
    with pytest.raises(ArtefactError, match=r"parts of a trace by 2 processes\. Add --resume"):
        own_part(tmp_path / "t", 0, 2, resume=False)
    for count in (1, 3):
        with pytest.raises(ArtefactError, match=rf"by 2 processes, and now there are {count}\. Go on with 2, or remo"):
            own_part(tmp_path / "t", 0, count, resume=True)
    assert own_part(tmp_path / "t", 1, 2, resume=True) == tmp_path / "t" / "parts" / "1-of-2"


def test_layers_over_devices_are_for_one_process(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Traces
) -> None:
    spread = tracer(tiny_llama, corpus_file, tmp_path / "spread", documents=DOCUMENTS, device_map="5-12=disk")
    assert_same(spread, alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"and 2 would each take all devices\. Use one process, or leave it out"):
        tracer(tiny_llama, corpus_file, tmp_path / "t", device_map="auto")
    assert own_device("cuda") == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [own_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]
