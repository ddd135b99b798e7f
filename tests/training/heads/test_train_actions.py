"""``harness train sec`` and ``consistent``: labels by hand, and heads that a run finds and decodes with."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.contracts import ModelRequest, Strategy
from harness.contracts.recipes import TrainingRun
from harness.decoding.engine import Engine
from harness.models.model import resolve
from harness.training.heads.train_actions import CONTINUE, EXIT, STOP, actions_of, stop_threshold
from harness.training.options import TraceOptions
from harness.training.recipes import ActionHeads, CandidatePredictors, ConsistentHeads
from strategies.consistent import Consistent
from strategies.predictor import Predictor
from strategies.sec import StopExit


def test_labels_are_what_would_be_right() -> None:
    top = torch.tensor([[5, 1, 5], [1, 1, 1], [2, 1, 1], [3, 5, 1]])
    final, truth = torch.tensor([5, 5, 1, 1]), torch.full((4,), 5)
    assert actions_of(top, final, truth).tolist() == [
        [EXIT, CONTINUE, EXIT],  # the exit between is followed by one that is right
        [CONTINUE] * 3,  # the last layer is
        [STOP] * 3,
        [CONTINUE, EXIT, STOP],  # nobody behind the third is
    ]


def test_stops_are_as_many_as_are_mostly_wrong() -> None:
    chances = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.7, 0.7], [0.6, 0.0], [0.5, 0.1]])
    wrong = torch.tensor([True, True, False, True, False])
    # By their greatest chance .9, .8, .7, .6, .5: of the first n 1, 1, 2/3, 3/4, 3/5 are wrong.
    for precision, threshold, share in ((1.0, 0.8, 0.4), (0.75, 0.6, 0.8), (0.6, 0.5, 1.0)):
        found = stop_threshold(chances, wrong, precision)
        assert [round(number, 6) for number in found] == [threshold, share]
    assert stop_threshold(chances, torch.zeros(5).bool(), 0.5) == (1.0, 0.0)


def trained(model: Path, out: Path, options: TraceOptions, recipe: str, strategies: list[Strategy]) -> list[list[int]]:
    """Train, and return the exit layers of some strategies on a prompt."""
    said = options.train(TrainingRun(recipe, f"harness train {recipe}"))  # type: ignore[attr-defined]
    assert "| threshold (replayed) | mean exit layer | agreement |" in said.report
    resolved = resolve(ModelRequest(str(model), weights="pretrained", artefacts=str(out), exit_head="shared"))
    engine = Engine(resolved.load("cpu").backbone, resolved.info)
    found = []
    for strategy in strategies:
        assert strategy.exit_points(resolved.info) == (4, 6, 10)
        assert recipe in strategy.artefacts(resolved.info)
        (made,) = engine.decode([[5, 6, 7]], strategy, kv="recompute", max_new_tokens=[8])
        assert made.failure is None
        found.append(made.exit_layers)
    return found


def test_sec_is_trained_and_run(tiny_llama: Path, small_trace: Path, tmp_path: Path) -> None:
    options = ActionHeads(model=str(tiny_llama), traces=small_trace, out=tmp_path, hidden=4, epochs=2, precision=0.2)
    runs = [StopExit(1.0, 1.0), StopExit(1.0, 0.0), StopExit()]
    never, at_once, _ = trained(tiny_llama, tmp_path, options, "sec", runs)
    assert never == [12] * 8
    assert at_once == [12]  # the prompt's own token, and no other


def test_policies_are_trained_and_run(tiny_llama: Path, small_trace: Path, tmp_path: Path) -> None:
    options = ConsistentHeads(model=str(tiny_llama), traces=small_trace, out=tmp_path, hidden=4, epochs=2, saving=0.5)
    never, at_once, _ = trained(
        tiny_llama, tmp_path, options, "consistent", [Consistent(1.0), Consistent(0.0), Consistent()]
    )
    assert never == [12] * 8
    assert at_once == [12] + [4] * 7


def test_predictors_are_trained_and_run(tiny_llama: Path, small_trace: Path, tmp_path: Path) -> None:
    options = CandidatePredictors(
        model=str(tiny_llama), traces=small_trace, out=tmp_path, head="full", candidates=4, hidden=4, epochs=2
    )
    runs = [Predictor(1.0, "full"), Predictor(0.0, "full"), Predictor(None, "full")]
    never, at_once, _ = trained(tiny_llama, tmp_path, options, "predictor", runs)
    assert never == [12] * 8
    assert at_once == [12] + [4] * 7  # the best token of the first exit is always a candidate
