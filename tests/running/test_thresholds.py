"""Families of settings: values as written, thresholds at percentiles of observed scores, and runs with those."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.config import parse_all
from harness.contracts import Batch, ModelInfo
from harness.errors import ConfigError
from harness.running.thresholds import PASSES, Family, SharesOfExits, coarse, family, finer, numbered, percentiles
from tests.run_files import cut

Command = Callable[..., Any]


def test_values_are_those_listed_and_percentiles_those_named_or_equally_spaced() -> None:
    one = family("margin:horizon=20:threshold=0.9,0.5,0.9", 8)
    assert (one.option, one.values, one.wanted) == ("threshold", ("0.9", "0.5"), ())
    assert [str(one.at(value)) for value in one.values] == [
        "margin:horizon=20:threshold=0.9", "margin:horizon=20:threshold=0.5",
    ]  # fmt: skip
    assert family("fixed:layer=14,22", 8).values == ("14", "22")
    assert family("confidence:threshold=q10,q50,q99.5", 8).wanted == (10, 50, 99.5)
    assert family("confidence", 3).wanted == (25, 50, 75)


def test_percentiles_become_numbers_by_family() -> None:
    def numbers(one: Family) -> dict[str, float]:
        return {f"0.{place}": wanted for place, wanted in enumerate(one.wanted, start=1)}

    text = "margin:threshold=q10,q50:horizon=20,30@lossless"
    found = numbered(parse_all([text], in_run=True), numbers)
    assert {(str(spec), spec.decode): known for spec, known in found.items()} == {
        ("margin:horizon=20:threshold=0.1", "lossless"): 10, ("margin:horizon=20:threshold=0.2", "lossless"): 50,
        ("margin:horizon=30:threshold=0.1", "lossless"): 10, ("margin:horizon=30:threshold=0.2", "lossless"): 50,
    }  # fmt: skip
    plain = parse_all(["confidence:threshold=0.5", "full"])
    assert numbered(plain, numbers) == dict.fromkeys(plain)


def test_other_texts_are_refused() -> None:
    for text, said in (
        ("margin:horizon=10,20:threshold=0.5,0.9", "lists values of horizon and of threshold"),
        ("patience", "has no threshold to calibrate. List values"),
        ("patience:threshold=q10", "patience has no threshold with a range. Give values"),
        ("confidence:threshold=q10,0.5", "give percentiles of the threshold alone"),
        ("fixed:layer=q10,q20", "give percentiles of the threshold alone"),
        ("layerskip:length=q3", "give percentiles of the threshold alone"),
        ("confidence:threshold=q0,q50", "between q0 and q100"),
        ("confidence:threshold=q100", "between q0 and q100"),
    ):
        with pytest.raises(ConfigError, match=said):
            family(text, 8)


@pytest.mark.parametrize(("strategy", "rising"), [("confidence", False), ("entropy", True)])
def test_a_percentile_is_the_threshold_that_so_many_scores_lie_below(strategy: str, rising: bool) -> None:
    """Scores 1/1000, 2/1000 … 1, seen by the view of a model of 50 tokens; NaN nowhere."""
    scores = torch.arange(1, 1001) / 1000
    view = SimpleNamespace(
        top_probability=scores, entropy=scores * torch.log(torch.tensor(50.0)), vocab_size=50, rows=torch.arange(1000)
    )
    view.read = lambda head: view
    view.once = lambda key, compute: compute()
    one = family(f"{strategy}:threshold=q5,q50,q90,q99.9", 1)
    asked = SharesOfExits(one, coarse(one))
    rule = asked.start(ModelInfo.__new__(ModelInfo), Batch((0,), "cpu"))
    assert not rule.should_exit(view).any()  # type: ignore[arg-type]
    shares = [asked.shares[threshold] for threshold in sorted(asked.shares)]
    assert shares == sorted(shares, reverse=not rising)
    found = percentiles(asked.one, asked.shares)
    assert [wanted for wanted, _ in found.values()] == [5, 50, 90, 99.9]
    assert [reached for _, reached in found.values()] == pytest.approx([5, 50, 90, 99.9], abs=0.11)
    assert [float(value) for value in found] == pytest.approx([0.05, 0.5, 0.9, 0.999], abs=0.0006)


def test_close_percentiles_of_coarse_scores_are_one_threshold_and_a_score_that_never_varies_is_refused() -> None:
    found = percentiles(family("confidence:threshold=q10,q11,q60", 3), {0.1: 1.0, 0.5: 0.5, 0.9: 0.0})
    assert found == {"0.1": (10, 0), "0.5": (60, 50)}
    with pytest.raises(ConfigError, match="decides alike at every threshold"):
        percentiles(family("confidence", 3), {0.1: 0.0, 0.5: 0.0, 0.9: 0.0})


def test_thresholds_are_laid_where_scores_crowd() -> None:
    """Cosines between .97 and 1, a hundredth of a range from −1 to 2: a first grid has none between."""
    cosines = 1 - 0.03 * torch.linspace(0.002, 1, 500) ** 2
    one = family("saturation:threshold=q10,q30,q50,q90,q98", 1)
    shares: dict[float, float] = {}
    at = coarse(one)
    for _ in range(PASSES):
        shares |= {threshold: (cosines >= threshold).float().mean().item() for threshold in at}
        at = finer(one, shares)
        assert len(at) <= 200
    found = percentiles(one, shares)
    assert [reached for _, reached in found.values()] == pytest.approx([10, 30, 50, 90, 98], abs=0.6)
    for value, (_, reached) in found.items():
        assert 100 * (cosines < float(value)).float().mean().item() == pytest.approx(reached, abs=0.01)


# ----------------------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_percentiles_become_numbers_and_stay_them(tiny_run: Command, cli: Command, tmp_path: Path) -> None:
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
    cut(tmp_path / "first", -2)
    resumed = cli("run", "--resume", "first")
    assert resumed.code == 0, resumed.err
    assert json.loads((tmp_path / "first" / "manifest.json").read_text())["observed_thresholds"] == observed


def test_what_learns_while_it_decodes_has_no_percentiles(refused: Command) -> None:
    assert "give percentiles of the threshold alone" in refused("--strategy", "fixed:layer=q10,q50")
    said = refused("--strategy", "free:layer=4:threshold=q50", "--limit", 3)
    assert "free:layer=4 learns from its own tokens while it decodes" in said
    assert "--strategy 'free:layer=4:threshold=VALUE,VALUE'" in said


def test_the_observed_documents_are_not_the_run_s(tiny_run: Command) -> None:
    """Eight documents: with all of them in use none is left."""
    said = tiny_run("--strategy", "confidence:threshold=q50", "--limit", 8).error
    assert "all 8 documents" in said
    assert "Use a --limit below 8, or list values: --strategy 'confidence:threshold=VALUE,VALUE'" in said
