"""``harness reproduce green-code``: the grid from one command, resumed without repeats, or refused in one line."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import ModelRequest
from harness.green_code import measure as measuring
from harness.models.controllers import Network, Observation, write_controller
from harness.models.model import resolve
from tests.run_files import cut

Command = Callable[..., Any]


def write_agent(folder: Path, model: Path, name: str, chance_of_exit: float) -> None:
    """An agent that always answers with the same probability, as `harness train rl` would leave it."""
    info = resolve(ModelRequest(str(model))).info
    logit = math.log(chance_of_exit / (1 - chance_of_exit))
    network = Network(((torch.zeros(1, info.hidden_size), torch.tensor([logit])),), "tanh")
    facts = {
        "model": info.name,
        "model_fingerprint": info.fingerprint,
        "exit_points": list(info.exit_points),
        "exit_head": info.exit_head,
        "hidden_size": info.hidden_size,
        "threshold": 0.5,
        "temperature": 1.0,
    }
    write_controller(folder / f"{name}.json", "rl", Observation(), {"shared": network}, facts)


@pytest.fixture
def arguments(cli: Command, tiny_llama: Path, rows_file: Path, tmp_path: Path) -> list[object]:
    """The grid on the tiny model, whose agent leaves at once below 0.85 and never from there on."""
    write_agent(tmp_path / "artefacts" / tiny_llama.name, tiny_llama, "rl-python", 0.85)
    return [
        "reproduce", "green-code", "--model", tiny_llama, "--source", rows_file, "--task", "py150", "--limit", 5,
        "--dtype", "float32", "--energy", "none", "--threads", 1,
    ]  # fmt: skip


def test_the_grid_is_measured_shown_written_and_goes_on(
    cli: Command, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = cli(*arguments, "--out", "grid")
    assert ran.code == 0, ran.err
    assert "run 1 of 1" in ran.err  # nothing was tuned: no untuned run beside
    assert "asked, never exits" in ran.out
    assert "stands in:" in ran.out
    grid = tmp_path / "grid"
    stems = {path.name for path in grid.iterdir() if path.is_file()}
    assert {"plan.json", "grid.md", "grid.csv", "grid.json", "grid-1-python.svg", "grid-1-python.pdf"} <= stems
    assert 'width="504pt"' in (grid / "grid-1-python.svg").read_text(encoding="utf-8")
    with (grid / "grid.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    skipped = {
        (row["setting"], row["kv"]): float(row["value"])
        for row in rows
        if row["side"] == "measured" and row["quantity"] == "layers_skipped"
    }
    for kv in ("none", "propagate"):
        assert (
            skipped["0.6", kv] == skipped["0.8", kv] == pytest.approx(1 - 4 / 12)
        )  # the first exit point of 12 layers
        assert skipped["0.9", kv] == skipped["0.92", kv] == skipped["never", kv] == 0
    assert not [row for row in rows if row["side"] == "measured" and "energy" in row["quantity"]]

    def may_not_run(*given: Any, **more: Any) -> None:
        raise AssertionError("a finished run was repeated")

    windows = next(grid.glob("*/windows.jsonl"))
    before = windows.read_bytes()
    monkeypatch.setattr(measuring, "execute", may_not_run)
    again = cli("reproduce", "green-code", "--resume", "grid", "--width", "column", "--json")
    assert again.code == 0, again.err
    assert "finished before" in again.err
    assert 'width="252pt"' in (grid / "grid-1-python.svg").read_text(encoding="utf-8")
    assert windows.read_bytes() == before
    (table,) = json.loads(again.out)["tables"]
    assert [point["key"] for point in table["points"]] == ["full", "0.6", "0.8", "0.9", "0.91", "0.92", "never"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)

    cut(windows.parent, -3)  # as a kill leaves it
    third = cli("reproduce", "green-code", "--resume", "grid", "--json")
    assert third.code == 0, third.err
    assert len(windows.read_bytes().splitlines()) >= len(before.splitlines())
    (table_again,) = json.loads(third.out)["tables"]
    for was, now in zip(table["points"], table_again["points"], strict=True):
        assert was["uncached"]["layers_skipped"] == now["uncached"]["layers_skipped"]
        assert was["cached"]["rouge_l"] == now["cached"]["rouge_l"]
    assert "--limit cannot change" in cli("reproduce", "--resume", "grid", "--limit", 9).error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scale", "huge"], "--scale 'huge' is not a scale"),
        (["--strategy", "rl"], "--strategy belongs to --figure kv"),
        (["--figure", "kv", "--scale", "small"], "--scale belongs to --figure grid"),
        (["--figure", "kv", "--width", "column"], "--width belongs to --figure grid"),
        (["--task", "humaneval"], "--task humaneval is not in the paper's grid. Use javacorpus or py150."),
        (["--limit", "0"], "the grid needs 1 sample or more"),
        (["--resume", "nowhere"], "nowhere is not a grid"),
        (["--weights", "big"], "--weights big is unknown"),
    ],
)
def test_what_cannot_be_made_is_one_line(cli: Command, words: list[str], said: str) -> None:
    assert said in cli("reproduce", *words).error


def test_a_model_without_an_agent_is_refused_before_anything_is_written(
    cli: Command, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    ran = cli("reproduce", "--model", tiny_llama, "--source", rows_file, "--task", "py150", "--out", "grid")
    assert f"{tiny_llama.name} has no agent rl-python. Use --scale small, or make them in this order" in ran.error
    assert [line.split()[:2] for line in ran.commands] == [["harness", "trace"], ["harness", "train"]]
    assert all(f"--model {tiny_llama}" in line for line in ran.commands)
    assert not (tmp_path / "grid").exists()


def test_what_draws_its_figures_is_asked_for_before_it_measures(
    cli: Command, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "figures need matplotlib, which is not installed" in cli(*arguments, "--out", "grid").error
    assert not (tmp_path / "grid").exists()


def test_the_full_scale_says_what_it_needs_before_it_refuses(cli: Command) -> None:
    ran = cli("reproduce", "--scale", "full")
    assert "llama-3.2-3b has no weights here" in ran.error
    assert "8 runs, 1,000 samples a task" in ran.err
    assert "hours at the speed of the paper's Quadro RTX 8000" in ran.err


def test_stopped_it_says_how_it_goes_on(
    cli: Command, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "execute", stopped)
    ran = cli(*arguments, "--out", "grid")
    assert ran.code == 130
    assert "Continue with `harness reproduce green-code --resume grid`" in ran.err
    assert (tmp_path / "grid" / "plan.json").exists()
