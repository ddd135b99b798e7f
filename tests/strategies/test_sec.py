"""Exit, stop or go on: three probabilities, two thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import Batch, ModelInfo
from harness.errors import ArtefactError
from harness.models.controllers import Network, Observation, write_controller
from harness.training.identity import identity
from strategies.sec import StopExit

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


@pytest.mark.parametrize(
    ("options", "leaves", "stops"),
    [
        ({}, [0], [3]),
        ({"threshold": 0.39}, [0, 1], [3]),  # the third row's .45 is not the likeliest
        ({"threshold": 0.0}, [0, 1], [3]),
        ({"threshold": 1.0}, [], [3]),
        ({"stop": 0.3}, [0], [1, 3, 4]),
        ({"threshold": 0.39, "stop": 0.3}, [0, 1], [3, 4]),  # what exits does not stop
        ({"stop": 1.0}, [0], []),
        ({"threshold": 1.0, "stop": 0.09}, [], [0, 1, 3, 4]),
    ],
)
def test_the_actions(view: Any, model: ModelInfo, options: Any, leaves: list[int], stops: list[int]) -> None:
    write(model)
    here = seen(view)
    answer = StopExit(**options).start(model, Batch((0,) * 5, "cpu")).should_exit(here)
    assert answer.nonzero().flatten().tolist() == leaves
    assert ([] if here.stopped is None else here.stopped.nonzero().flatten().tolist()) == stops


def test_what_does_not_fit_is_refused(model: ModelInfo) -> None:
    with pytest.raises(ArtefactError, match=r"there is no sec.json") as refused:
        StopExit().exit_points(model)
    assert "harness train sec" in str(refused.value)
    write(model, outputs=1)
    with pytest.raises(ArtefactError, match="holds no three-way head for layer 4"):
        StopExit().start(model, Batch((0,), "cpu"))
    write(model, stop=1.5)
    with pytest.raises(ArtefactError, match=r"was saved with stop 1\.5, which is not allowed"):
        StopExit().exit_points(model)
