"""The return that policies are paid by, and three actions, one of which stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import Batch, ModelInfo
from harness.errors import ArtefactError
from harness.models.controllers import Network, Observation, write_controller
from harness.training.heads import expected_return
from harness.training.identity import identity
from strategies.sec import StopExit

DEPTHS = torch.tensor([0.25, 0.5])


@pytest.mark.parametrize(
    ("right", "chances", "expected"),
    [
        # Right at once and for good: m = ¼; exits earn 1 − .4 · ¾ · (¼, ½, 1) = .925, .85, .7.
        ([1, 1], (0.5, 0.5), 0.5 * 0.925 + 0.25 * 0.85 + 0.25 * 0.7),
        # Right only at the second exit: m = ½; 0 − .4 · ½ · ¼, 1 − .4 · ½ · ½, 1 − .4 · ½
        ([0, 1], (0.5, 0.5), 0.5 * -0.05 + 0.25 * 0.9 + 0.25 * 0.8),
        # Right and wrong again: m = 1, and depth costs nothing
        ([1, 0], (0.2, 0.5), 0.2 + 0.8 * 0.5),
        ([0, 0], (0.2, 0.5), 0.8 * 0.5),
    ],
)
def test_the_return_is_its_expectation(right: list[int], chances: tuple[float, float], expected: float) -> None:
    logits = torch.logit(torch.tensor(chances)).unsqueeze(1)
    found = expected_return(logits, torch.tensor(right).float().unsqueeze(1), DEPTHS, 0.4)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_tokens_are_averaged_and_the_best_policy_is_found() -> None:
    right = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    both = expected_return(torch.zeros(2, 2), right, DEPTHS, 0.4).item()
    each = [expected_return(torch.zeros(2, 1), right[:, n : n + 1], DEPTHS, 0.4).item() for n in (0, 1)]
    assert both == pytest.approx(sum(each) / 2)
    logits = torch.zeros(2, 2, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        (-expected_return(logits, right, DEPTHS, 0.4)).backward()
        optimiser.step()
    assert (logits[0] > 0).tolist() == [True, False]  # the easy token at the first, the other one not there
    assert logits[1, 1] > 0
    assert -expected_return(logits, right, DEPTHS, 0.4).item() == pytest.approx(-(0.925 + 0.9) / 2, abs=0.02)


CHANCES = [[0.7, 0.1, 0.2], [0.4, 0.3, 0.3], [0.45, 0.05, 0.5], [0.1, 0.8, 0.1], [0.25, 0.35, 0.4]]


def write(model: ModelInfo, outputs: int = 3, **facts: Any) -> None:
    """Heads that say what the first numbers of the state are."""
    heads = {str(p): Network(((torch.eye(outputs, 8), torch.zeros(outputs)),)) for p in model.exit_points}
    described = identity(model, "t") | {"threshold": 0.6, "stop": 0.75} | facts
    write_controller(Path(model.artefacts[0]) / "sec.json", "sec", Observation(), heads, described)


def seen(view: Any) -> Any:
    states = torch.zeros(len(CHANCES), 8)
    states[:, :3] = torch.tensor(CHANCES).log()
    return view(hidden_state=states, exit_layer=6)


def test_the_actions(view: Any, model: ModelInfo) -> None:
    write(model)
    cases: tuple[tuple[dict[str, float], list[int], list[int]], ...] = (
        ({}, [0], [3]),
        ({"threshold": 0.39}, [0, 1], [3]),  # the third row's .45 is not the likeliest
        ({"threshold": 0.0}, [0, 1], [3]),
        ({"threshold": 1.0}, [], [3]),
        ({"stop": 0.3}, [0], [1, 3, 4]),
        ({"threshold": 0.39, "stop": 0.3}, [0, 1], [3, 4]),  # what exits does not stop
        ({"stop": 1.0}, [0], []),
        ({"threshold": 1.0, "stop": 0.09}, [], [0, 1, 3, 4]),
    )
    for options, leaves, stops in cases:
        here = seen(view)
        answer = StopExit(**options).start(model, Batch((0,) * 5, "cpu")).should_exit(here)
        assert answer.nonzero().flatten().tolist() == leaves, options
        assert ([] if here.stopped is None else here.stopped.nonzero().flatten().tolist()) == stops, options


def test_what_does_not_fit_is_refused(model: ModelInfo) -> None:
    write(model, outputs=1)
    with pytest.raises(ArtefactError, match="holds no three-way head for layer 4"):
        StopExit().start(model, Batch((0,), "cpu"))
    write(model, stop=1.5)
    with pytest.raises(ArtefactError, match=r"was saved with stop 1\.5, which is not allowed"):
        StopExit().exit_points(model)
