"""The published numbers are the authors', and the KV figure lays ours beside them without mixing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from harness.errors import StoreError
from harness.records.summary import Summary
from reports.green_code.kv_figure import Share, kv_figure, kv_markdown
from reports.green_code.published_runs import green_code
from tests.reports.conftest import RunBuilder

REFERENCE = Path(__file__).resolve().parents[4] / "shared" / "reference" / "green-code-published.csv"


def test_every_published_run_is_the_authors() -> None:
    if not REFERENCE.exists():
        pytest.skip("the folder shared/reference with the authors' result files is not here")
    with REFERENCE.open(encoding="utf-8") as file:
        theirs = list(csv.DictReader(file))
    ours = [run for run in green_code() if run.kv == "none"]
    assert len(ours) == len(theirs)
    for run, row in zip(ours, theirs, strict=True):
        assert (run.model, run.language, run.samples) == (row["model"], row["language"], int(row["n_samples"]))
        assert run.threshold == (float(row["threshold"]) if row["threshold"] else None)
        assert run.energy_j == pytest.approx(float(row["energy_mean_J"]), abs=0.01)
        assert run.time_s == pytest.approx(float(row["time_mean_s"]), abs=1e-4)
        assert run.exit_layer_mean == pytest.approx(float(row["mean_layers"]), abs=0.01)
        assert run.rouge_l == pytest.approx(float(row["rougeL"]), abs=1e-4)


def test_the_audit_s_finding_stands_in_the_data() -> None:
    """Every published GREEN-CODE point costs more than full depth with a cache."""
    cached = [run.energy_j for run in green_code() if run.kv == "propagate" and run.strategy == "full"]
    agents = [run.energy_j for run in green_code() if run.strategy == "rl"]
    assert max(cached) < 120
    assert min(agents) > 170


def figure_run() -> Summary:
    run = RunBuilder(points=("full@none", "full@propagate", "rl@none", "rl@propagate", "fixed:layer=5@none"), kv="none")
    seconds = {"full@none": 4.0, "full@propagate": 1.0, "rl@none": 2.0, "rl@propagate": 0.8, "fixed:layer=5@none": 2.0}
    for block in range(6):
        for point, duration in seconds.items():
            run.window(point, {}, duration=duration, block=block)
    return run.summary()


def test_shares_are_of_uncached_full_depth() -> None:
    rows = {row.operating_point: row for row in kv_figure(figure_run(), "py150")}
    assert str(rows["full@none"].time) == "1.00"
    assert str(rows["full@propagate"].time) == "0.25 [0.25, 0.25]"
    assert str(rows["rl@propagate"].time) == "0.20 [0.20, 0.20]"
    assert rows["rl@none"].energy is None  # nothing was measured, which is not zero


def test_published_shares_stand_only_where_there_is_such_a_run() -> None:
    rows = {row.operating_point: row for row in kv_figure(figure_run(), "py150")}
    assert rows["full@none"].published_energy == Share(1.0)
    agent, cached = rows["rl@none"].published_energy, rows["full@propagate"].published_energy
    assert agent is not None
    assert cached is not None
    assert agent.low == pytest.approx(339.31 / 625.87, abs=1e-4)  # OPT, Python
    assert cached.high == pytest.approx(113.51 / 427.20, abs=1e-4)  # Llama, Java
    assert cached.high < agent.low  # type: ignore[operator]
    assert rows["rl@propagate"].published_energy is None
    assert rows["fixed:layer=5@none"].published_energy is None


def test_markdown_says_what_is_missing() -> None:
    text = kv_markdown(figure_run())
    assert r"| `rl@propagate` | – | – | 0.20 \[0.20, 0.20] | – |" in text
    assert "Quadro RTX 8000" in text


def test_a_run_without_the_uncached_baseline_is_refused() -> None:
    run = RunBuilder()
    for block in range(6):
        run.window("full", {}, block=block)
        run.window("fixed:layer=5", {}, block=block)
    with pytest.raises(StoreError, match="harness reproduce green-code"):
        kv_figure(run.summary(), "py150")
