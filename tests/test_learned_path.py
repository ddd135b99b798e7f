"""The asked-for command on a small OPT with random weights: trace → train rl → run --strategy rl."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = ("--model", "opt-125m", "--weights", "random")


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.slow
@pytest.mark.model
def test_the_whole_path_with_random_weights(tmp_path: Path) -> None:
    traced = harness(
        tmp_path, "trace", *MODEL, "--task", "py150", "--documents", "4", "--length", "64", "--out", "traces/opt-125m"
    )
    assert traced.returncode == 0, traced.stderr
    index = json.loads((tmp_path / "traces" / "opt-125m" / "index.json").read_text())
    assert index["exit_points"] == [4, 6, 10]
    assert index["weights"] == "random"
    trained = harness(
        tmp_path, "train", "rl", "--model", "opt-125m", "--traces", "traces/opt-125m", "--steps", "1024", "--envs", "16"
    )
    assert trained.returncode == 0, trained.stderr
    run = harness(
        tmp_path, "run", "--strategy", "rl:threshold=0.5,1", *MODEL, "--task", "py150", "--limit", "2",
        "--max-new-tokens", "5", "--energy", "none", "--out", "run",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    agent = json.loads((tmp_path / "artefacts" / "opt-125m" / "rl.json").read_text())
    asked = [point for point in manifest["operating_points"] if point["strategy"] == "rl"]
    assert [point["artefacts"]["agent"] for point in asked] == [agent["sha256"]] * 2
    assert agent["model_fingerprint"] == manifest["model"]["fingerprint"] == index["model_fingerprint"]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    depths = {s["operating_point"]: set(s["exit_layers"]) for s in samples if not s.get("error")}
    assert depths["rl:threshold=1"] == {12}
    other_seed = harness(tmp_path, "run", "--strategy", "rl", *MODEL, "--seed", "1", "--limit", "1")
    assert other_seed.returncode == 2  # other random weights: the agent was not trained on them
    assert agent["model_fingerprint"] in other_seed.stderr
