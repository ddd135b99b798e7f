"""Scores behind thresholds: where thresholds lie, and that calibration.json says what the scores would have said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import StrategySpec, parse_strategies
from harness.contracts import ModelInfo
from harness.errors import ConfigError
from harness.records.calibration import Calibration
from harness.replay.scores import find_levels, find_tallies, with_thresholds
from harness.replay.sweep import SweepResult
from harness.replay.tokens import TracedTokens
from harness.training.traces.reading import held_out_rows
from harness.training.traces.store import Traces
from reports.collection import find_calibrations, read_calibration

POINTS = (4, 6, 10)


@pytest.fixture
def calibrated(swept: Callable[..., SweepResult], tmp_path: Path) -> Callable[..., Calibration]:
    def run(*strategies: str) -> Calibration:
        found = swept(*strategies, document_split="all", out=tmp_path / "s").calibration
        assert found is not None
        return found

    return run


def exact(score: torch.Tensor, right: torch.Tensor) -> float:
    """AUROC of real scores, by the definition."""
    good, bad = score[right].double(), score[~right].double()
    above = (good[:, None] > bad).double() + (good[:, None] == bad).double() / 2
    return above.mean().item()


def traced_columns(traced: Path) -> dict[str, torch.Tensor]:
    return Traces.open(traced).columns("top", "top1", "entropy", "final")


def test_thresholds_tell_what_the_scores_would(calibrated: Callable[..., Calibration], traced: Path) -> None:
    columns = traced_columns(traced)
    right = columns["top"] == columns["final"].unsqueeze(1)
    found = {score.score: score for score in calibrated("confidence", "entropy:threshold=0.2,0.3", "confidence").scores}
    assert set(found) == {"confidence", "entropy"}, "each strategy once, without its threshold"
    assert (found["confidence"].ascending, found["confidence"].probability) == (True, True)
    assert (found["entropy"].ascending, found["entropy"].probability) == (False, False)
    assert "threshold" not in found["entropy"].options
    for name, column, sign in (("confidence", "top1", 1), ("entropy", "entropy", -1)):
        scores = sign * columns[column].float()
        for place, each in enumerate(found[name].exits):
            assert each.exit_layer == POINTS[place]
            assert each.tokens == len(right)
            assert each.agreement == pytest.approx(right[:, place].float().mean().item())
            assert each.auroc == pytest.approx(exact(scores[:, place], right[:, place]), abs=0.01)
            assert each.auroc_ci is not None
            assert each.auroc_ci[0] <= each.auroc <= each.auroc_ci[1]
        pooled = found[name].pooled
        assert pooled.tokens == 3 * len(right)
        assert pooled.auroc == pytest.approx(exact(scores.flatten(), right.flatten()), abs=0.01)


def test_a_probability_s_error_is_that_of_its_bins(calibrated: Callable[..., Calibration], traced: Path) -> None:
    columns = traced_columns(traced)
    (score,) = calibrated("confidence").scores
    top1, right = columns["top1"].float().flatten(), (columns["top"] == columns["final"].unsqueeze(1)).flatten()
    for b in score.pooled.bins:
        inside = (top1 >= b.scores[0]) & (top1 < b.scores[1] if b.quantiles[1] < 1 else top1 <= 1)
        assert int(inside.sum()) == b.tokens
        assert b.score == pytest.approx(top1[inside].mean().item(), abs=0.005)
        assert b.agreement == pytest.approx(right[inside].float().mean().item())
    assert score.pooled.bins[0].quantiles[0] == 0
    assert score.pooled.bins[-1].quantiles[1] == 1
    assert all(a.quantiles[1] == b.quantiles[0] for a, b in zip(score.pooled.bins, score.pooled.bins[1:], strict=False))
    expected = sum(b.tokens * abs(b.agreement - b.score) for b in score.pooled.bins) / score.pooled.tokens
    assert score.pooled.ece == pytest.approx(expected)


def test_a_strategy_that_never_asks_twice_has_no_score(made: Callable[..., TracedTokens], info: ModelInfo) -> None:
    alike = made(top=[[1, 1, 1]] * 9, final=[1] * 9, hidden=torch.ones(9, 3, 32))
    specs = parse_strategies("patience") + parse_strategies("confidence:threshold=0.1,0.2")
    kept, left_out = find_tallies(specs, lambda: alike, info, torch.arange(1))
    assert [str(tally.spec) for tally in kept] == ["confidence"]
    assert left_out == {"patience": "it has no option threshold with a range"}
    (spec,) = parse_strategies("saturation")
    tally = find_levels(spec, alike, info, torch.arange(1))
    assert tally is not None, "never at the first exit, always at the others"
    tally.add(alike, info)
    assert (tally.tokens > 0).sum((1, 2)).tolist() == [1, 1, 1]


def test_a_score_from_outside_is_swept_and_judged_like_one_from_here(
    swept: Callable[..., SweepResult], traced: Path, plug_in: Callable[..., None], tmp_path: Path
) -> None:
    plug_in(
        "norm",
        """
        from typing import Annotated, ClassVar
        from pydantic import Field

        @dataclass(frozen=True)
        class Outside(Strategy):
            '''Exit when the hidden state is long.'''

            probabilistic: ClassVar[bool] = True
            threshold: Annotated[float, Field(ge=0, le=1000, description="length")] = 10.0

            def should_exit(self, view):
                return view.hidden_state.norm(dim=-1) >= self.threshold
        """,
    )
    traces = Traces.open(traced)
    columns = traces.columns("top", "final", "hidden")
    right = columns["top"] == columns["final"].unsqueeze(1)
    found = swept("norm", points=5, document_split="all", out=tmp_path / "s")
    depths = [row.exit_layer_mean for row in found.sweep.rows[2:]]
    assert depths == sorted(set(depths), reverse=True)
    assert found.calibration is not None
    (score,) = found.calibration.scores
    norms = columns["hidden"].float().norm(dim=-1)
    for place, each in enumerate(score.exits):
        assert each.auroc == pytest.approx(exact(norms[:, place], right[:, place]), abs=0.01)
    assert score.pooled.ece is not None, "its author says that it is a probability; whether it is, the error says"
    assert score.pooled.ece > 1


@pytest.mark.slow
def test_the_command_writes_it_beside_the_sweep(
    cli: Callable[..., Any], tiny_llama: Path, traced: Path, tmp_path: Path
) -> None:
    arguments = ("sweep", "--replay", traced, "--model", tiny_llama, "--strategy", "confidence:threshold=0.5")
    done = cli(*arguments, "--strategy", "patience", "--out", tmp_path / "s")
    assert done.code == 0, done.err
    assert "calibration.json" in done.err
    assert find_calibrations([tmp_path, tmp_path / "s"]) == [tmp_path / "s"]
    found = read_calibration(tmp_path / "s")
    assert "right exits from wrong ones, replayed, teacher-forced" in done.out
    assert f"{found.scores[0].pooled.auroc:.3f}" in done.out
    written = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert found.measurement == "replayed, teacher-forced"
    assert (found.tokens, found.documents, found.title) == (written["tokens"], written["documents"], written["title"])
    assert found.left_out == {"patience": "it has no option threshold with a range"}
    held = int(held_out_rows(Traces.open(traced), Traces.open(traced).columns("document")["document"], seed=0).sum())
    assert {each.tokens for each in found.scores[0].exits} == {held}
    assert "right exits from wrong ones" not in cli(*arguments).out, "without --out nothing is judged"
    assert cli("report", tmp_path / "s", "--out", tmp_path / "r").code == 0
    report = (tmp_path / "r" / "report.md").read_text()
    assert "## Scores, replayed" in report
    assert {path.stem.rpartition("-")[2] for path in (tmp_path / "r" / "figures").glob("calibration-*.png")} >= {
        "auroc"
    }


# ------------------------------------------------------------------------------------- thresholds

COUNT = 400


@pytest.fixture
def tokens(made: Callable[..., Any]) -> Any:
    """Best probabilities 1/1200, 2/1200, … 1; entropies fall as they rise."""
    order = torch.randperm(3 * COUNT, generator=torch.Generator().manual_seed(0)).view(COUNT, 3)
    best = (order + 1) / (3 * COUNT)
    zeros = torch.zeros(COUNT, 3)
    return made(top=zeros, final=zeros[:, 0], top1=best, top2=best / 4, entropy=(1 - best) * math.log(50))


def thresholds(specs: list[StrategySpec]) -> list[float]:
    return [float(dict(spec.options)["threshold"]) for spec in specs]


def test_thresholds_are_quantiles_from_few_exits_to_many(tokens: Any, info: ModelInfo) -> None:
    found = thresholds(with_thresholds(StrategySpec("confidence"), 9, tokens, info))
    assert found == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], abs=0.012)
    found = thresholds(with_thresholds(StrategySpec("entropy"), 4, tokens, info))  # a score that counts downwards
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.025)


def test_skewed_scores_are_resolved(made: Callable[..., Any], info: ModelInfo) -> None:
    """Nine tenths of the scores lie within a hundredth of the range."""
    best = torch.cat((torch.linspace(0.49, 0.5, 270), torch.linspace(0, 0.49, 30)))
    best = best[torch.randperm(300, generator=torch.Generator().manual_seed(1))].view(100, 3)
    zeros = torch.zeros(100, 3)
    tokens = made(top=zeros, final=zeros[:, 0], top1=best)
    found = with_thresholds(StrategySpec("confidence"), 9, tokens, info)
    shares = [(best.half().float() >= threshold).float().mean().item() for threshold in thresholds(found)]
    assert shares == pytest.approx([place / 10 for place in range(1, 10)], abs=0.03)


def test_further_options_are_kept_and_values_are_short(tokens: Any, info: ModelInfo) -> None:
    found = with_thresholds(StrategySpec("margin", (("horizon", "20"),)), 5, tokens, info)
    assert all(spec.options[0] == ("horizon", "20") for spec in found)
    assert len(found) == 5
    assert all(len(dict(spec.options)["threshold"]) <= 5 for spec in found)


def test_scores_that_are_all_alike_leave_one_threshold_or_none(made: Callable[..., Any], info: ModelInfo) -> None:
    zeros = torch.zeros(50, 3)
    tokens = made(top=zeros, final=zeros[:, 0], top1=torch.full((50, 3), 0.5))
    assert len(with_thresholds(StrategySpec("confidence"), 20, tokens, info)) <= 2
    tokens = made(top=zeros, final=zeros[:, 0], top1=torch.ones(50, 3))
    with pytest.raises(ConfigError, match=r"confidence decides alike .*--strategy 'confidence:threshold=VALUE,VALUE'"):
        with_thresholds(StrategySpec("confidence"), 20, tokens, info)
    assert with_thresholds(StrategySpec("confidence"), 20, tokens, info, refuse=False) == []
