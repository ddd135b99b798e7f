"""Episodes read from a trace: whose rows they are, and where they begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.errors import ArtefactError, TrainingError
from harness.models.controllers import Observation
from harness.training.agents.episodes import CONTEXT, Episodes, read_episodes, split
from harness.training.agents.reward import REWARDS
from harness.training.traces.reading import documents_of
from harness.training.traces.store import Traces, TraceWriter
from tests.training.tracing import FACTS

POINTS, LAYERS, WIDTH, FIRST = (4, 6, 10), 12, 8, 8
PYTHON, JAVA = "py150, somewhere", "javacorpus, elsewhere"


def write(folder: Path, documents: list[tuple[str, int]], *, new_tokens: int = 0) -> Traces:
    """A trace of (stream, length) documents; a state's first number is its document, the second its position."""
    shape = {"exit_points": list(POINTS), "num_layers": LAYERS, "hidden_size": WIDTH, "new_tokens": new_tokens}
    writer = TraceWriter(folder, FACTS | shape, resume=False, shard_tokens=50)
    chance = torch.Generator().manual_seed(0)
    for number, (stream, length) in enumerate(documents):
        first = length // 2 if new_tokens else FIRST
        count = new_tokens or length - first
        hidden = torch.randn(count, len(POINTS), WIDTH, generator=chance)
        hidden[:, :, 0] = number
        hidden[:, :, 1] = torch.arange(first, first + count).unsqueeze(1)
        columns: dict[str, Tensor] = {
            "hidden": hidden.half(),
            "top": torch.randint(3, (count, len(POINTS)), generator=chance, dtype=torch.int32),
            "final": torch.randint(3, (count,), generator=chance, dtype=torch.int32),
            "position": torch.arange(first, first + count, dtype=torch.int32),
        }
        writer.add({"id": str(number), "stream": stream, "key": f"k{number}", "length": length}, columns)
    writer.flush()
    return Traces.open(folder)


def read(traces: Traces, *tasks: str, length: int = 15, observation: Observation | None = None) -> Episodes:
    chosen = documents_of(traces, tasks)
    return read_episodes(traces, chosen, length, observation or Observation(), {}, REWARDS["python"])


def test_rows_are_the_trace_s(tmp_path: Path) -> None:
    traces = write(tmp_path / "t", [(PYTHON, 60), (JAVA, 80), (PYTHON, 70)])
    columns = traces.columns("hidden", "top", "final")
    found = read(traces)
    assert torch.equal(torch.from_numpy(found.observations), columns["hidden"].float())
    assert torch.equal(torch.from_numpy(found.right), columns["top"] == columns["final"].unsqueeze(1))
    assert [document.row for document in found.documents] == [0, 52, 124]
    assert found.tokens == traces.tokens == len(found.rows())


def test_a_task_keeps_its_documents_alone(tmp_path: Path) -> None:
    traces = write(tmp_path / "t", [(PYTHON, 60), (JAVA, 80), (PYTHON, 70)])
    found = read(traces, "py150")
    assert [document.number for document in found.documents] == [0, 2]
    assert sorted(set(found.observations[:, 0, 0].tolist())) == [0, 2]
    assert len(found.observations) == found.tokens == 52 + 62
    with pytest.raises(ArtefactError, match=r"no document of rust; it has javacorpus, elsewhere; py150, somewhere\."):
        read(traces, "rust")


def test_contexts_are_uniform_over_documents_and_shares(tmp_path: Path) -> None:
    lengths = [100, 400, 200]
    found = read(write(tmp_path / "t", [(PYTHON, length) for length in lengths]))
    rows, ends = found.draw(np.random.default_rng(0), 6000)
    assert set((ends - rows).tolist()) == {15}
    document, position = found.observations[rows, 0, 0].astype(int), found.observations[rows, 0, 1]
    assert (document == found.observations[ends - 1, 0, 0]).all()
    assert np.abs(np.bincount(document) / 6000 - 1 / 3).max() < 0.03
    shares = position / np.array(lengths)[document]
    assert shares.min() == pytest.approx(CONTEXT[0], abs=0.01)
    assert shares.max() == pytest.approx(CONTEXT[1], abs=0.01)
    assert shares.mean() == pytest.approx(0.4, abs=0.01)


def test_generated_tokens_follow_their_own_context(tmp_path: Path) -> None:
    found = read(write(tmp_path / "t", [(PYTHON, 60), (PYTHON, 80)], new_tokens=10))
    learning, _ = split(found, ())
    rows, ends = learning.draw(np.random.default_rng(0), 100)
    assert set(zip(rows.tolist(), ends.tolist(), strict=True)) == {(0, 10), (10, 20)}


def test_documents_too_short_are_left_out(tmp_path: Path) -> None:
    traces = write(tmp_path / "t", [(PYTHON, 36), (PYTHON, 38), (PYTHON, 60), (PYTHON, 20)])
    learning, held_out = split(read(traces), {2, 3})
    assert [document.number for document in learning.documents] == [1]  # 60 % of 38 is 23, and 23 + 15 = 38
    assert [document.number for document in held_out.documents] == [2, 3]
    rows, ends = learning.draw(np.random.default_rng(0), 500)
    assert (ends <= learning.documents[0].row + learning.documents[0].tokens).all()
    assert (rows >= learning.documents[0].row).all()
    with pytest.raises(TrainingError, match=r"the longest has 60\. Trace longer ones, or lower --tokens"):
        split(read(traces, length=60), {0})


def test_states_are_mapped_before_they_are_looked_at(tmp_path: Path) -> None:
    traces = write(tmp_path / "t", [(PYTHON, 60), (PYTHON, 80)])
    maps: Any = {point: lambda state, point=point: -point * state for point in POINTS}
    found = read_episodes(traces, (0, 1), 15, Observation(state="exit"), maps, REWARDS["java"])
    hidden = traces.columns("hidden")["hidden"].float()
    assert torch.equal(torch.from_numpy(found.observations), -hidden * torch.tensor(POINTS).view(1, 3, 1))
