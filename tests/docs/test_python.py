"""Blocks of Python run as they stand: on the real default model where that is what they show."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.pages import NAMES, blocks

NEED_A_MODEL = {"README.md": 1, "docs/lm-eval.md": 1, "docs/tutorials/python.md": 4, "docs/tutorials/own-model.md": 1}
"""Page → its blocks of Python that other tests run."""
API = "docs/tutorials/python.md"


def run(name: str, code: str, names: dict[str, Any]) -> None:
    exec(compile(code, name, "exec", dont_inherit=True), names)


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "python") and name not in NEED_A_MODEL])
def test_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "shown"}
    for block in blocks(name, "python"):
        run(name, block, names)


def test_the_blocks_of_the_api_are_four_short_ones() -> None:
    shown = blocks(API, "python")
    assert len(shown) == NEED_A_MODEL[API]
    assert max(sum(bool(line.strip()) for line in block.splitlines()) for block in shown) <= 10


@pytest.mark.model
def test_the_blocks_of_the_api_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(API, "python"):
        run(API, block, names)
    assert len(names["answer"].tokens) == 24
    assert set(names["exits"].exit_layer) == {4, 6, 8, 10, 12, 14, 18, 22, 26, 30}
    assert names["rows"].operating_point.tolist() == ["full", "__main__:Sure:threshold=0.8", "fixed:layer=22"]
    assert Path(names["rows"].attrs["run_dir"], "summary.json").is_file()

    run("README.md", blocks("README.md", "python")[0], names)  # here, since the model's kernels are compiled
    full = names["model"].generate("def fibonacci(n):\n    ", "full", max_new_tokens=24)
    assert names["answer"].tokens.token_id.tolist() == full.tokens.token_id.tolist()


@pytest.mark.model
def test_the_block_of_lm_eval_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    """On the row that its page shows, and the task that the walk's does."""
    evaluator = pytest.importorskip("lm_eval.evaluator")
    name = "docs/lm-eval.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    none_of_its_own = partial(evaluator.TaskManager, include_defaults=False)  # they take seconds to list
    monkeypatch.setattr(evaluator, "TaskManager", none_of_its_own)
    (row,), (task,) = blocks(name, "json"), blocks("docs/tutorials/walk.md", "yaml")
    Path("lines.jsonl").write_text(row, encoding="utf-8")
    Path("line.yaml").write_text(task, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "shown"}
    (block,) = blocks(name, "python")
    run(name, block, names)
    assert (names["spent"]["requests"], names["results"]["config"]["early_exit"]["num_layers"]) == (1, 30)
    assert 4 <= names["spent"]["exit_layer_mean"] <= 30
    assert names["spent"]["s_per_token"] > 0
