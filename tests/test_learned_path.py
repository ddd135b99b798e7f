"""The asked-for command on a small OPT with random weights: trace → train rl → run --strategy rl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MODEL = ("--model", "opt-125m", "--weights", "random")


@pytest.mark.slow
@pytest.mark.model
def test_the_whole_path_with_random_weights(cli: Callable[..., Any], tmp_path: Path) -> None:
    traced = cli("trace", *MODEL, "--task", "py150", "--documents", "2", "--length", "64", "--out", "traces/opt-125m")
    assert traced.code == 0, traced.err
    index = json.loads((tmp_path / "traces" / "opt-125m" / "index.json").read_text())
    assert index["exit_points"] == [4, 6, 10]
    assert index["weights"] == "random"
    trained = cli(
        "train", "rl", "--model", "opt-125m", "--traces", "traces/opt-125m", "--steps", "1024", "--envs", "16"
    )
    assert trained.code == 0, trained.err
    run = cli(
        "run", "--strategy", "rl:threshold=1", *MODEL, "--task", "py150", "--limit", "1",
        "--max-new-tokens", "3", "--energy", "none", "--idle-s", "0", "--threads", "1", "--out", "run",
    )  # fmt: skip
    assert run.code == 0, run.err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    agent = json.loads((tmp_path / "artefacts" / "opt-125m" / "rl.json").read_text())
    asked = [point for point in manifest["operating_points"] if point["strategy"] == "rl"]
    assert [point["artefacts"]["agent"] for point in asked] == [agent["sha256"]]
    assert agent["model_fingerprint"] == manifest["model"]["fingerprint"] == index["model_fingerprint"]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    depths = {s["operating_point"]: set(s["exit_layers"]) for s in samples if not s.get("error")}
    assert depths["rl:threshold=1"] == {12}
    other_seed = cli("run", "--strategy", "rl", *MODEL, "--seed", "1", "--limit", "1")
    assert other_seed.code == 2  # other random weights: the agent was not trained on them
    assert agent["model_fingerprint"] in other_seed.err
