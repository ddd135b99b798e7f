"""What an earlier training left, as anybody may have changed it: refused in one line or passed over, never a defect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from harness.contracts.recipes import TrainingRun
from harness.errors import ArtefactError, HarnessError, TrainingError
from harness.models.artefacts import write_artefact
from harness.registry import RECIPES
from harness.training.agents.exit_env import Tally
from harness.training.agents.ppo import AgentCheckpoints
from harness.training.checkpoints import Checkpoints, cut_log
from harness.training.lite.trainer import check_beginning, last_checkpoint
from harness.training.traces.store import Traces, TraceWriter

pytestmark = pytest.mark.timeout(60)

LINES = b'{"step": 1, "steps": 1}\n{"step": 9, "steps": 9}\n'
BROKEN = (
    b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe", b"{}", b'{"step": "x", "steps": "x"}', b'{"step": null}',
    b"[" * 5000, b'{"steps": 1e999, "step": 1e999}', b'{"step": ' + b"1" * 5000 + b"}", b'{"a": "\\ud800"}',
)  # fmt: skip


def refusal(act: Callable[[], object], error: type[HarnessError] = ArtefactError) -> str:
    with pytest.raises(error) as refused:
        act()
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


# ------------------------------------------------------------------------------------- artefacts


def test_what_was_trained_for_something_else_is_not_replaced(
    tiny_llama: Path, small_trace: Path, tmp_path: Path
) -> None:
    others: tuple[tuple[dict[str, Any], str], ...] = (
        ({"exit_head": "shortcut:0123"}, "exit head shortcut:0123, and {traces} has shared"),
        ({"model_fingerprint": "f" * 16}, "weights ffffffffffffffff, and {traces} has "),
        ({"exit_points": [4]}, "exit points [4], and {traces} has [4, 6, 10]"),
    )
    recipes = ("classifier", "lte", "consistent", "sec", "excess", "hash", "predictor", "rl")
    for number, recipe in enumerate(recipes):
        other, said = others[number % 3]
        write_artefact(tmp_path / f"{recipe}.json", recipe, {}, other)
        options = RECIPES.load(recipe)(model=str(tiny_llama), traces=small_trace, out=tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        line = refusal(lambda options=options, recipe=recipe: options.train(TrainingRun(recipe, "")))
        assert f"{recipe}.json was trained for {said.format(traces=small_trace)}" in line
        assert line.endswith("Give --name NAME to keep both, or --overwrite.")
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# -------------------------------------------------------------------------------------------- logs


def cut(log: Path) -> None:
    cut_log(log, lambda line: line["step"] <= 5)


def test_a_line_that_is_none_is_dropped_from_a_log(tmp_path: Path) -> None:
    log = tmp_path / "training.jsonl"
    for broken in BROKEN:
        log.write_bytes(broken + b"\n" + LINES)
        cut(log)
        assert log.read_bytes() == LINES.splitlines(keepends=True)[0], broken


def test_what_is_no_file_is_not_opened(tmp_path: Path, put: Callable[[Path], str]) -> None:
    said = put(tmp_path / "training.jsonl")
    if not said.startswith("Too many"):  # as good as none
        assert said in refusal(lambda: cut(tmp_path / "training.jsonl"), TrainingError)
    said = put(tmp_path / "begun.json")
    assert said in refusal(lambda: check_beginning(tmp_path, {"--seed": 0}, resume=True), TrainingError)


def test_a_note_of_the_beginning_that_is_none_is_refused(tmp_path: Path) -> None:
    for broken in BROKEN:
        (tmp_path / "begun.json").write_bytes(broken)
        assert str(tmp_path) in refusal(lambda: check_beginning(tmp_path, {"--seed": 0}, resume=True), TrainingError)


# ------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_without_a_whole_state_does_not_count(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    for broken in (*BROKEN, b'{"global_step": "1"}'):
        (tmp_path / "checkpoint-2" / "trainer_state.json").write_bytes(broken)
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    for name in ("checkpoint-x", "checkpoint-" + "9" * 200, "checkpoint-\u0663", "checkpoint-1-2"):
        (tmp_path / "checkpoint-1").rename(tmp_path / name)
        assert last_checkpoint(tmp_path) is None
        (tmp_path / name).rename(tmp_path / "checkpoint-1")
    for name in ("step-x", "step-", "step--1", "step-1e3", f"step-{'9' * 99}"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert "holds no checkpoint" in refusal(Checkpoints(tmp_path, "rl", {}).read, TrainingError)


def test_a_changed_checkpoint_of_an_agent_is_refused(tmp_path: Path) -> None:
    policy: Any = nn.Linear(3, 1)
    policy.optimizer = torch.optim.Adam(policy.parameters())
    policy(torch.ones(2, 3)).sum().backward()
    policy.optimizer.step()
    checkpoints, env = AgentCheckpoints(tmp_path, "rl", {"seed": 3}), Mock()
    checkpoints.save(policy, 5, {"ends": np.zeros(2, dtype=np.int64)}, Tally.empty(2), 9)
    assert checkpoints.load(policy, env)[0] == 5
    (path,) = tmp_path.glob("*.json")
    facts, tensors = json.loads(path.read_text()), checkpoints.read().tensors()
    for change in ({"episodes": "x"}, {"episode_rewards": []}, {"steps": -1}, {"steps": 1.5}, {"training": 5}):
        path.write_text(json.dumps(facts | change))
        assert str(path) in refusal(lambda: checkpoints.load(policy, env)), change
    kept = {name: value for name, value in facts.items() if name not in ("format", "kind", "sha256")}
    for spoilt in (
        {"policy.weight": torch.ones(2, 3)},
        {"policy.weight": None},
        {"policy.bias": torch.tensor([torch.nan])},
        {"optimizer.x.exp_avg": torch.ones(1)},
        {"tally.exits": None},
    ):
        left = {name: tensor for name, tensor in (tensors | spoilt).items() if tensor is not None}
        write_artefact(path, facts["kind"], left, kept)
        assert str(tmp_path) in refusal(lambda: checkpoints.load(policy, env)), spoilt


# ------------------------------------------------------------------------------------------ traces

EXITS, WIDTH, TOKENS = (4, 6), 8, 12
FACTS: dict[str, Any] = {
    "model": "toy", "model_fingerprint": "a" * 16, "tokenizer_fingerprint": "b" * 16, "exit_points": list(EXITS),
    "exit_head": "shared", "num_layers": 8, "hidden_size": WIDTH, "weights": "pretrained", "dtype": "float32",
    "seed": 0, "length": 64,
}  # fmt: skip
SHAPES = {
    "hidden": (len(EXITS), WIDTH), "last": (WIDTH,), "top": (len(EXITS),), "top1": (len(EXITS),), "final": (),
    "document": (),
}  # fmt: skip


def trace(folder: Path, **changes: torch.Tensor | None) -> Path:
    """A trace of one document of 12 tokens; a change may be another column, or none."""
    columns = {
        name: torch.zeros(TOKENS, *shape, dtype=torch.int32 if name in ("top", "final", "document") else torch.float16)
        for name, shape in SHAPES.items()
    }
    made = {name: column for name, column in (columns | changes).items() if column is not None and name != "document"}
    writer = TraceWriter(folder, FACTS, resume=False)
    writer.add({"id": "d", "stream": "toy", "key": "k", "length": TOKENS}, made)
    writer.flush()
    return folder


def test_states_beyond_float16_are_named(tmp_path: Path) -> None:
    for name in ("hidden", "last"):
        folder = trace(tmp_path / name, **{name: torch.full((TOKENS, *SHAPES[name]), torch.inf).half()})
        assert "holds states beyond float16" in refusal(
            lambda folder=folder, name=name: Traces.open(folder).columns(name)
        )
        assert Traces.open(folder).columns("final")["final"].shape == (TOKENS,)


@pytest.mark.parametrize("name", ["index.json", "shard-00000.safetensors"])
def test_a_trace_with_what_is_no_file_is_not_opened(tmp_path: Path, put: Callable[[Path], str], name: str) -> None:
    folder = trace(tmp_path / "t")
    said = put(folder / name)
    message = refusal(lambda: Traces.open(folder))
    assert said in message if name == "index.json" else "has None bytes and should have" in message
