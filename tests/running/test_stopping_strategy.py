"""A strategy that stops completions, where it is only asked: by a probe, and by whoever observes its scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import ModelRequest
from harness.models.controllers import Network, Observation, write_controller
from harness.models.model import resolve
from harness.training.identity import identity
from tests.run_files import samples

Command = Callable[..., Any]


@pytest.fixture
def stopping(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a ``sec`` for the tiny model that never exits and always stops, by its own thresholds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    info = resolve(ModelRequest(str(tiny_llama), exit_head="shared")).info
    generator = torch.Generator().manual_seed(0)
    heads = {
        str(point): Network(((torch.randn(3, info.hidden_size, generator=generator), torch.zeros(3)),))
        for point in info.exit_points
    }
    file = tmp_path / "sec.json"
    looks = Observation(normalise=True)
    write_controller(file, "sec", looks, heads, identity(info, "t") | {"threshold": 1.0, "stop": 0.0})
    return file


def test_a_probe_of_one_that_stops_generates_what_full_depth_does(
    tiny_run: Command, stopping: Path, tmp_path: Path
) -> None:
    name = f"sec:heads={stopping}"
    ran = tiny_run("--strategy", name, "--attribute", "--out", "run")
    assert ran.code == 0, ran.err
    found = samples(tmp_path / "run")
    assert {len(one["token_ids"]) for one in found[name].values()} == {1}  # the prompt's token, then it stops
    assert {one["finish_reason"] for one in found[name].values()} == {"strategy"}
    for sample_id, probed in found[f"{name} (never exits)"].items():
        assert probed["token_ids"] == found["full"][sample_id]["token_ids"]
        assert probed["finish_reason"] == "length"


def test_scores_of_one_that_stops_are_observed_on_whole_completions(
    tiny_run: Command, stopping: Path, tmp_path: Path
) -> None:
    """Five documents, four new tokens, three of them decided, three exit points: 45 answers, where it stopped at 5."""
    ran = tiny_run("--strategy", f"sec:heads={stopping}:threshold=q50", "--out", "run")
    assert ran.code == 0, ran.err
    (observed,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["observed_thresholds"]
    share = observed["reached"] / 100
    assert abs(share * 5 - round(share * 5)) > 1e-3
    assert share * 45 == pytest.approx(round(share * 45), abs=1e-3)
