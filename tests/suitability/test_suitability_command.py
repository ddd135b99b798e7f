"""``harness suitability``: what it prints and writes, a trace that is read again, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.suitability.record import Suitability
from harness.training.traces.store import Traces

Command = Callable[..., Any]


@pytest.fixture
def suitability(cli: Command, tiny_llama: Path, rows_file: Path) -> Command:
    """``harness suitability`` on the tiny model and small documents; further arguments win."""

    def run(*arguments: object) -> Any:
        small = ("--task", "py150", "--source", rows_file, "--documents", 8, "--length", 48, "--split", "test")
        return cli("suitability", tiny_llama, *(() if "--traces" in arguments else small), "--threads", 1, *arguments)

    return run


def test_a_model_is_judged_and_its_trace_judged_again(suitability: Command, tmp_path: Path) -> None:
    asked = ("--no-measure-costs", "--keep", 0.5)
    ran = suitability(*asked, "--out", tmp_path / "s")
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    for words in ("An oracle would skip", "closed-form maps", "Lossy, with 50% of the tokens kept", "Lossless: "):
        assert words in said
    found = Suitability.model_validate_json((tmp_path / "s" / "suitability.json").read_text())
    columns = Traces.open(tmp_path / "s" / "trace").columns("top", "final")
    right = columns["top"] == columns["final"].unsqueeze(1)
    (own,) = (head for head in found.heads if head.own)
    assert [one.agreement for one in own.exits] == pytest.approx(right.float().mean(0).tolist())
    ends = torch.tensor([*found.exit_points, found.num_layers])
    always = torch.cat((right, torch.ones(len(right), 1, dtype=torch.bool)), dim=1)
    first = ends[always.int().argmax(1)].float().mean().item()
    assert own.oracle_skip == pytest.approx(1 - first / found.num_layers)
    assert (found.times, found.best(lossless=True).time_speedup) == (None, None)
    again = suitability("--traces", tmp_path / "s" / "trace", *asked, "--json")
    assert Suitability.model_validate_json(again.out) == found


def test_times_are_measured(suitability: Command) -> None:
    ran = suitability("--json")
    assert ran.code == 0, ran.err
    found = Suitability.model_validate_json(ran.out)
    assert found.times is not None
    assert found.head_in_layers > 0
    assert all(one.time_speedup is not None and one.time_speedup > 0 for one in found.chances)
    assert json.loads(ran.out)["verdict"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--documents", 3], "greater than or equal to 4"),
        (["--model", "other"], "are two models. Give one"),
        (["--keep", 0], "--keep"),
        (["--traces", "nowhere"], "there is no trace nowhere"),
        (["--traces", "nowhere", "--weights", "pretrained"], "decides weights: omit that"),
        (["--exit-points", "400"], "400"),
    ],
)
def test_refusals(suitability: Command, arguments: list[object], said: str) -> None:
    assert said in suitability(*arguments).error.replace("\n", " ")
