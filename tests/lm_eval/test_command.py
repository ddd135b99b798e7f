"""``harness lm-eval``: a run directory that reports read, lm-eval's results beside it, and one line for what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.records import Manifest

Command = Callable[..., Any]
EXIT = "fixed:layer=4"


@pytest.fixture
def lm_eval(cli: Command, tiny_llama: Path, task_folder: Path) -> Command:
    """``harness lm-eval`` on the tiny model and our tasks; further arguments win."""

    def run(*arguments: object) -> Any:
        given = ("lm-eval", "--model", tiny_llama, "--include-path", task_folder, "--energy", "estimate")
        return cli(*given, "--threads", 1, *arguments)

    return run


def test_the_results_of_every_operating_point_and_a_run_that_reports_read(
    lm_eval: Command, cli: Command, hf: dict[str, Any]
) -> None:
    ran = lm_eval("--tasks", "ours_line,ours_choice,ours_whole", "--strategy", EXIT, "--batch-size", 3, "--out", "out")
    assert ran.code == 0, ran.err
    for word in ("ours_line", "exact_match", "acc_norm", EXIT, "full depth", "estimate, not a measurement"):
        assert word in ran.out

    full, early = (json.loads(Path("out/lm-eval", point, "results.json").read_text()) for point in ("full", EXIT))
    for task in ("ours_line", "ours_choice", "ours_whole"):
        for name, value in hf["results"][task].items():
            if isinstance(value, float):
                assert full["results"][task][name] == pytest.approx(value, rel=1e-5)
    generated = {name: found["config"]["early_exit"]["tasks"]["ours_line"]["generated"] for name, found in
                 {"full": full, "early": early}.items()}
    assert generated["full"]["exit_layer_mean"] == 12
    assert generated["early"]["exit_layer_mean"] == 4
    for facts in generated.values():
        assert facts["energy_source"] == "estimate"
        assert not facts["energy_measured"]
        assert facts["j_per_token"] > 0 < facts["s_per_token"]
    # what is only scored is scored once, at full depth, whatever the strategy
    assert early["results"]["ours_choice"] == full["results"]["ours_choice"]
    scored = early["config"]["early_exit"]
    assert scored["loglikelihood_at"] == "full depth"
    assert scored["tasks"]["ours_choice"]["scored"]["exit_layer_mean"] == 12
    assert scored["tasks"]["ours_choice"]["scored"]["requests"] == 21

    manifest = Manifest.model_validate_json(Path("out/manifest.json").read_text())
    assert [task.name for task in manifest.tasks] == ["ours_line"]
    samples = [json.loads(line) for line in Path("out/samples.jsonl").read_text().splitlines()]
    mean = sum(sample["scores"]["lm_eval_exact_match"] for sample in samples if sample["operating_point"] == EXIT) / 7
    assert early["results"]["ours_line"]["exact_match,none"] == pytest.approx(mean)

    report = cli("report", "out")
    assert report.code == 0, report.err
    assert EXIT in report.out
    assert "not installed" not in report.out + report.err
    assert "lm_eval_exact_match" in Path("out/summary.csv").read_text()
