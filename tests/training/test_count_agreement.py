"""``harness train hash``: shares counted by hand, and a table that a run finds and decodes with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.contracts import ModelRequest
from harness.contracts.recipes import TrainingRun
from harness.decoding.engine import Engine
from harness.models.model import resolve
from harness.training.count_agreement import shares_of
from harness.training.recipes import TokenTable
from harness.training.traces.training_set import TrainingSet
from strategies.hash import Hash


def test_shares_are_counted_by_the_token_that_was_read() -> None:
    read = torch.tensor([5, 2, 5, 5, 2, 9])
    right = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 1], [0, 1], [1, 1]]).bool()
    token_ids, shares = shares_of(read, right, 2)
    assert token_ids.tolist() == [2, 5]  # 9 was read once
    assert shares.flatten().tolist() == pytest.approx([0, 2 / 3, 2 / 4, 2 / 4])
    assert shares_of(read, right, 1)[1][2].tolist() == [0.5, 0.5]  # once, and counted as twice
    assert shares_of(read, right, 4)[0].tolist() == []


def test_a_table_is_trained_on_a_trace_and_run(tiny_llama: Path, small_trace: Path, tmp_path: Path) -> None:
    options = TokenTable(model=str(tiny_llama), traces=small_trace, out=tmp_path / "a", least=2, keep=0.5)
    said = options.train(TrainingRun("hash", "harness train hash"))
    again = options.train(TrainingRun("hash", "harness train hash"))
    assert again == said, "what is of the same model is replaced"
    assert "| threshold (replayed) | mean exit layer | agreement |" in said.report
    facts = json.loads((tmp_path / "a" / "hash.json").read_text())
    assert facts["recipe"] == {"least": 2}
    assert facts["documents"]
    resolved = resolve(
        ModelRequest(str(tiny_llama), weights="pretrained", artefacts=str(tmp_path / "a"), exit_head="shared")
    )
    engine = Engine(resolved.load("cpu").backbone, resolved.info)
    data = TrainingSet.open(options, TrainingRun("hash", ""))
    learned = set(data.traces.columns("input")["input"][data.learned].tolist())
    made = [engine.decode([[5, 6, 7]], Hash(threshold=t), kv="recompute", max_new_tokens=[12])[0] for t in (0.0, 1.0)]
    assert set(made[1].exit_layers) == {12}
    for token, layer in zip(made[0].token_ids, made[0].exit_layers[1:], strict=False):
        assert layer == 4 if token in learned else layer == 12
