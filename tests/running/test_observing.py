"""Thresholds given as percentiles: numbers before the run, percentiles in its manifest, observed once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.run_files import cut

Command = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "early-exit-harness" / "observed"


def test_percentiles_become_numbers_and_are_observed_once(
    tiny_run: Command, cli: Command, cache: Path, tmp_path: Path
) -> None:
    asked = ("--strategy", "confidence:threshold=q20,q80", "--strategy", "entropy:threshold=q50", "--limit", 3)
    ran = tiny_run(*asked, "--out", "first")
    assert ran.code == 0, ran.err
    assert "observing the scores of confidence" in ran.err
    manifest = json.loads((tmp_path / "first" / "manifest.json").read_text())
    observed = manifest["observed_thresholds"]
    assert [one["percentile"] for one in observed] == [20, 80, 50]
    assert [one["reached"] for one in observed] == pytest.approx([20, 80, 50], abs=4)  # of some hundred scores
    assert {one["documents"] for one in observed} == {5}  # all that are left of eight
    assert [one["strategy"] for one in observed] == manifest["config"]["strategies"]
    assert observed[0]["threshold"] < observed[1]["threshold"]
    names = [point["name"] for point in manifest["operating_points"]]
    assert names == ["full", *(one["strategy"] for one in observed)]
    assert len(list(cache.iterdir())) == 2
    for file in cache.iterdir():  # what it holds is shares by threshold
        shares = json.loads(file.read_text())["value"]
        assert all(0 <= share <= 1 and 0 < float(at) < 1 for at, share in shares.items())
    again = tiny_run(*asked, "--out", "second")
    assert "observing" not in again.err
    second = json.loads((tmp_path / "second" / "manifest.json").read_text())
    assert second["observed_thresholds"] == observed
    cut(tmp_path / "first", -2)
    resumed = cli("run", "--resume", "first")
    assert resumed.code == 0, resumed.err
    assert json.loads((tmp_path / "first" / "manifest.json").read_text())["observed_thresholds"] == observed


def test_the_observed_documents_are_not_the_run_s(tiny_run: Command, cache: Path) -> None:
    """Eight documents: with all of them in use none is left."""
    said = tiny_run("--strategy", "confidence:threshold=q50", "--limit", 8).error
    assert "all 8 documents" in said
    assert "Use a --limit below 8, or list values: --strategy 'confidence:threshold=VALUE,VALUE'" in said
    assert not cache.exists()


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("fixed:layer=q10,q50", "give percentiles of the threshold alone"),
        ("patience:threshold=q10", "patience has no threshold with a range. Give values"),
        ("confidence:threshold=q10,0.5", "give percentiles of the threshold alone"),
        ("confidence:threshold=q100", "percentiles lie between q0 and q100"),
        ("layerskip:length=q3", "give percentiles of the threshold alone"),
    ],
)
def test_what_is_no_score_takes_one_line(refused: Command, strategy: str, said: str) -> None:
    assert said in refused("--strategy", strategy)
