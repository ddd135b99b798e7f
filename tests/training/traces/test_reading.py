"""A trace opened for training: the model it belongs to, what its exits saw, and documents that are kept out."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ModelRequest
from harness.decoding.blocks import Linear
from harness.errors import ArtefactError, DataError
from harness.models.artefacts import write_artefact
from harness.models.controllers import OBSERVATIONS
from harness.models.model import resolve
from harness.models.ngrams import read_index
from harness.training.identity import identity
from harness.training.traces.reading import (
    HELD_OUT,
    documents_of,
    exit_maps,
    exit_states,
    held_out_rows,
    index_of,
    open_traces,
)
from harness.training.traces.store import Traces, TraceWriter
from tests.run_files import write_index
from tests.training.tracing import FACTS, trace_of

POINTS, WIDTH = (4, 6, 10), 32
# ------------------------------------------------------------------------------- held-out documents


def toy(folder: Path, streams: Sequence[str], keys: Sequence[str] | None = None, tokens: int = 3) -> Traces:
    """One document per stream named, each with a key of its own unless they are given."""
    writer = TraceWriter(folder, FACTS, resume=False)
    for number, stream in enumerate(streams):
        count = tokens + number % 4
        columns = {name: torch.zeros(count, dtype=torch.int32) for name in ("final", "input")}
        key = f"k{number}" if keys is None else keys[number]
        writer.add({"id": str(number), "stream": stream, "key": key, "length": count}, columns)
    writer.flush()
    return Traces.open(folder)


def held_of(traces: Traces, seed: int, tasks: Sequence[str] = ()) -> set[int]:
    """Numbers of held-out documents; every row of one is held out, or none."""
    document = traces.columns("document")["document"]
    rows = held_out_rows(traces, document, documents_of(traces, tasks), seed=seed)
    assert rows.dtype == torch.bool
    assert rows.shape == document.shape
    held = set(document[rows].tolist())
    assert not held & set(document[~rows].tolist())
    return held


def test_a_tenth_of_each_stream_is_held_out_and_at_least_one(tmp_path: Path) -> None:
    sizes = {"py150, a": 40, "javacorpus, b": 14, "py150, c": 2}
    streams = [name for name, size in sizes.items() for _ in range(size)]
    random.Random(0).shuffle(streams)
    traces = toy(tmp_path / "t", streams)
    for seed in range(2):
        held = held_of(traces, seed)
        counts = {name: sum(traces.documents[number]["stream"] == name for number in held) for name in sizes}
        assert counts == {name: max(1, round(HELD_OUT * size)) for name, size in sizes.items()}
        assert counts == {"py150, a": 4, "javacorpus, b": 1, "py150, c": 1}


def test_what_was_generated_is_indexed_behind_its_prompt(tmp_path: Path) -> None:
    """The prompt is a fifth of a file and more, and the model has read it."""
    traces = toy(tmp_path / "t", ["py150, a"] * 2)
    index = json.loads((traces.folder / "index.json").read_text())
    for number, found in enumerate(index["documents"]):
        found["prompt"] = " ".join(str(1000 * number + at) for at in range(200))
    assert not read_index(tmp_path, index_of(traces, tmp_path)).has_run_of(range(1000, 1199))
    write_index(traces.folder, index)
    assert read_index(tmp_path, index_of(Traces.open(traces.folder), tmp_path)).has_run_of(range(1000, 1199))


def test_of_tasks_that_are_named_the_others_hold_nothing_out(tmp_path: Path) -> None:
    """As if the trace held no other documents; a lonely one among them is no obstacle."""
    traces = toy(tmp_path / "t", ["py150, a"] * 12 + ["py150, b"] * 5 + ["javacorpus, a"] * 12 + ["rust, a"])
    alone = toy(tmp_path / "alone", ["py150, a"] * 12 + ["py150, b"] * 5)
    for seed in range(2):
        held = held_of(traces, seed, ["py150"])
        assert held == held_of(alone, seed)
        assert max(held) < 17
        both = held_of(traces, seed, ["javacorpus", "py150"])
        assert {traces.documents[number]["stream"] for number in both} == {"py150, a", "py150, b", "javacorpus, a"}
    for tasks in ([], ["rust"], ["rust", "py150"]):
        with pytest.raises(DataError, match="one document of rust, a"):
            held_of(traces, 0, tasks)


def test_a_copy_of_a_held_out_document_is_held_out(tmp_path: Path) -> None:
    """Whichever stream it is in, asked for or not."""
    streams = ["py150, a"] * 20 + ["py150, b"] * 20 + ["javacorpus, a"] * 20
    keys = [f"k{number % 15}" for number in range(60)]
    traces = toy(tmp_path / "t", streams, keys)
    for seed, tasks in ((0, []), (1, []), (2, ["py150"]), (3, ["javacorpus"])):
        held = held_of(traces, seed, tasks)
        chosen = {keys[number] for number in held}
        assert 2 <= len(chosen) <= 6
        assert held == {number for number, key in enumerate(keys) if key in chosen}
        assert {streams[number] for number in held} == set(streams)


def test_rules_do_not_learn_from_what_exits_learned_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Unless next to nothing else is left of a stream; then it is said."""
    traces = toy(tmp_path / "t", ["py150, a"] * 9 + ["javacorpus, b"] * 9)

    def of(*read: int) -> Any:
        return SimpleNamespace(shortcut=SimpleNamespace(facts={"documents": [f"k{number}" for number in read]}))

    assert documents_of(traces, [], of(0, 1, 12)) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17]
    assert documents_of(traces, ["py150"], of(*range(5), *range(9, 18))) == [5, 6, 7, 8]
    assert documents_of(traces, [], SimpleNamespace(shortcut=None)) == documents_of(traces, []) == list(range(18))
    assert not caplog.records
    assert documents_of(traces, ["py150"], of(*range(6))) == list(range(9))
    assert "learned from 6 of these 9 documents" in caplog.text
    assert "Trace others, with another --seed" in caplog.text


# ----------------------------------------------------------------------------------- a model's trace


make_trace = partial(trace_of, documents=4, length=40)


def write_maps(folder: Path, model: Path, seed: int = 0) -> dict[int, tuple[Tensor, Tensor]]:
    """Random maps of every exit as an artefact of the model, with the values it keeps."""
    info = resolve(ModelRequest(str(model), weights="pretrained", exit_head="shared")).info
    chance = torch.Generator().manual_seed(seed)
    maps = {
        point: (
            torch.randn(WIDTH, WIDTH, generator=chance).bfloat16().float(),
            torch.randn(WIDTH, generator=chance).bfloat16().float(),
        )
        for point in POINTS
    }
    tensors = {
        f"{point}.{part}": tensor.bfloat16()
        for point, pair in maps.items()
        for part, tensor in zip(("weight", "bias"), pair, strict=True)
    }
    write_artefact(folder / "shortcut.json", "shortcut", tensors, identity(info, "t"))
    return maps


def test_a_trace_brings_its_model_s_settings_with_it(tiny_llama: Path, corpus_file: Path, tmp_path: Path) -> None:
    made = make_trace(tiny_llama, corpus_file, tmp_path / "t", exit_points="3,7")
    traces, resolved = open_traces(str(tiny_llama), tmp_path / "t", artefacts=None)
    assert traces == made
    assert resolved.info.exit_points == made.exit_points
    assert resolved.info.fingerprint == made.index["model_fingerprint"]
    assert (resolved.info.weights, resolved.info.dtype, resolved.shortcut) == ("pretrained", "float32", None)


def test_maps_that_were_made_again_are_refused(tiny_llama: Path, corpus_file: Path, tmp_path: Path) -> None:
    write_maps(tmp_path / "a", tiny_llama)
    made = make_trace(tiny_llama, corpus_file, tmp_path / "t", artefacts=str(tmp_path / "a"), exit_head="shortcut")
    open_traces(str(tiny_llama), tmp_path / "t", artefacts=str(tmp_path / "a"))
    write_maps(tmp_path / "a", tiny_llama, seed=1)
    with pytest.raises(ArtefactError, match=rf"exit head {made.index['exit_head']} .* has shortcut:.* are gone: res"):
        open_traces(str(tiny_llama), tmp_path / "t", artefacts=str(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    with pytest.raises(ArtefactError) as refusal:
        open_traces(str(tiny_llama), tmp_path / "t", artefacts=str(tmp_path / "a"))
    assert "--exit-head" not in str(refusal.value), "what reads a trace has no such option"
    assert (
        f"{tiny_llama.name} has shared now. Its shortcuts are gone: restore them, give --artefacts FOLDER, or trace "
        "again: `harness trace"
    ) in str(refusal.value)


def test_an_adapter_that_is_gone_is_told_of(tiny_llama: Path, corpus_file: Path, tmp_path: Path) -> None:
    make_trace(tiny_llama, corpus_file, tmp_path / "t")
    index = tmp_path / "t" / "index.json"
    tuned = {"weights": "tuned", "model_fingerprint": "7e" * 8}
    write_index(index.parent, json.loads(index.read_text()) | tuned)
    with pytest.raises(ArtefactError, match=r"Its adapter is gone: restore it, give --artefacts"):
        open_traces(str(tiny_llama), tmp_path / "t", artefacts=None)


# ---------------------------------------------------------------------------------- what exits saw


def test_only_what_looks_at_exit_states_goes_through_the_maps(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    maps = write_maps(tmp_path / "a", tiny_llama)
    make_trace(tiny_llama, corpus_file, tmp_path / "t", artefacts=str(tmp_path / "a"), exit_head="shortcut")
    traces, resolved = open_traces(str(tiny_llama), tmp_path / "t", artefacts=str(tmp_path / "a"))
    for name in ("paper", "normal", "rich"):
        assert exit_maps(traces, resolved, OBSERVATIONS[name]) == {}
    found = exit_maps(traces, resolved, OBSERVATIONS["exit"])
    assert list(found) == list(POINTS)
    for point, (weight, bias) in maps.items():
        linear = found[point].maps[""]
        assert torch.equal(linear.weight, weight)
        kept = linear.bias
        assert kept is not None
        assert torch.equal(kept, bias)

    states = exit_states(traces, found)
    hidden = traces.columns("hidden")["hidden"].float()
    assert states.dtype == torch.float16
    assert states.shape == hidden.shape
    for e, point in enumerate(POINTS):
        expected = hidden[:, e] @ maps[point][0].t() + maps[point][1]
        torch.testing.assert_close(states[:, e].float(), expected, rtol=2e-3, atol=2e-3)

    # what the head makes of these states is what the trace says of the exits
    backbone = resolved.load("cpu").backbone
    top = torch.stack([backbone.logits(states[:, e].float()).argmax(-1) for e in range(len(POINTS))], dim=1)
    assert (top == traces.columns("top")["top"]).float().mean() > 0.98  # float16 turns a tie now and then


def test_several_shards_are_one(tmp_path: Path) -> None:
    writer = TraceWriter(
        tmp_path / "t", FACTS | {"exit_points": [2, 3], "hidden_size": 2}, resume=False, shard_tokens=5
    )
    hidden = torch.arange(16 * 2 * 2).view(16, 2, 2).half()
    for number, part in enumerate(hidden.split(4)):
        columns = {"final": torch.zeros(4, dtype=torch.int32), "hidden": part.contiguous()}
        writer.add({"id": str(number), "stream": "s", "key": "k", "length": 4}, columns)
    writer.flush()
    traces = Traces.open(tmp_path / "t")
    assert len(traces.index["shards"]) == 2
    assert torch.equal(exit_states(traces, {}), hidden)
    double = Linear(2 * torch.eye(2), None)
    expected = torch.stack((2 * hidden[:, 0], 2 * hidden[:, 1] + 1), dim=1)
    maps = {2: double, 3: replace(double, bias=torch.ones(2))}
    rows = torch.rand(len(hidden), generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(exit_states(traces, maps), expected)
    assert torch.equal(exit_states(traces, maps, rows), expected[rows])
