"""Which settings are tried: values as written, and thresholds at percentiles of the scores a strategy shows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness.contracts import Batch, ModelInfo
from harness.errors import ConfigError
from harness.running.thresholds import PASSES, SharesOfExits, family, finer, percentiles


def test_values_are_those_listed() -> None:
    one = family("margin:horizon=20:threshold=0.9,0.5,0.9", 8)
    assert (one.option, one.values, one.wanted, one.observed) == ("threshold", ("0.9", "0.5"), (), False)
    assert one.texts == ("margin:horizon=20:threshold=0.9", "margin:horizon=20:threshold=0.5")
    assert family("fixed:layer=14,22", 8).texts == ("fixed:layer=14", "fixed:layer=22")
    assert family("confidence:threshold=0.7", 8).texts == ("confidence:threshold=0.7",)


def test_percentiles_are_those_named_or_equally_spaced() -> None:
    assert family("confidence:threshold=q10,q50,q99.5", 8).wanted == (10, 50, 99.5)
    assert family("confidence", 3).wanted == (25, 50, 75)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("margin:horizon=10,20:threshold=0.5,0.9", "lists values of horizon and of threshold"),
        ("patience", "has no threshold to calibrate. List values"),
        ("confidence:threshold=q10,0.5", "give percentiles of the threshold alone"),
        ("fixed:layer=q10,q20", "give percentiles of the threshold alone"),
        ("confidence:threshold=q0,q50", "between q0 and q100"),
    ],
)
def test_other_texts_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        family(text, 8)


@pytest.mark.parametrize(("strategy", "rising"), [("confidence", False), ("entropy", True)])
def test_a_percentile_is_the_threshold_that_so_many_scores_lie_below(strategy: str, rising: bool) -> None:
    """Scores 1/1000, 2/1000 … 1, seen by the view of a model of 50 tokens; NaN nowhere."""
    scores = torch.arange(1, 1001) / 1000
    view = SimpleNamespace(
        top_probability=scores,
        entropy=scores * torch.log(torch.tensor(50.0)),
        vocab_size=50,
        rows=torch.arange(1000),
    )
    view.read = lambda head: view
    view.once = lambda key, compute: compute()
    asked = SharesOfExits(family(f"{strategy}:threshold=q5,q50,q90,q99.9", 1))
    rule = asked.start(ModelInfo.__new__(ModelInfo), Batch((0,), "cpu"))
    assert not rule.should_exit(view).any()  # type: ignore[arg-type]
    shares = [asked.shares[threshold] for threshold in sorted(asked.shares)]
    assert shares == sorted(shares, reverse=not rising)
    found = percentiles(asked.one, asked.shares)
    assert [wanted for wanted, _ in found.values()] == [5, 50, 90, 99.9]
    assert [reached for _, reached in found.values()] == pytest.approx([5, 50, 90, 99.9], abs=0.11)
    assert [float(value) for value in found] == pytest.approx([0.05, 0.5, 0.9, 0.999], abs=0.0006)


def test_a_threshold_that_decides_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="decides alike at every threshold"):
        percentiles(family("confidence", 3), {0.1: 0.0, 0.5: 0.0, 0.9: 0.0})


def test_close_percentiles_of_coarse_scores_are_one_threshold(caplog: pytest.LogCaptureFixture) -> None:
    found = percentiles(family("confidence:threshold=q10,q11,q60", 3), {0.1: 1.0, 0.5: 0.5, 0.9: 0.0})
    assert found == {"0.1": (10, 0), "0.5": (60, 50)}
    assert [record.message for record in caplog.records] == [
        "confidence: its scores are too much alike: q10, q11 come to threshold=0.1, and stand there once"
    ]


def test_thresholds_are_laid_where_scores_crowd(caplog: pytest.LogCaptureFixture) -> None:
    """Cosines between .97 and 1, a hundredth of a range from −1 to 2: a first grid has none between."""
    cosines = 1 - 0.03 * torch.linspace(0.002, 1, 500) ** 2
    one = family("saturation:threshold=q10,q30,q50,q90,q98", 1)
    shares: dict[float, float] = {}
    asked = SharesOfExits(one)
    for _ in range(PASSES):
        for threshold in asked.at or asked._thresholds():
            shares[threshold] = (cosines >= threshold).float().mean().item()
        asked = SharesOfExits(one, finer(one, shares))
        assert len(asked.at) <= 200
    found = percentiles(one, shares)
    assert [reached for _, reached in found.values()] == pytest.approx([10, 30, 50, 90, 98], abs=0.6)
    for value, (_, reached) in found.items():
        assert 100 * (cosines < float(value)).float().mean().item() == pytest.approx(reached, abs=0.01)
    assert not caplog.records
