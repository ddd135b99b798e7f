"""What every strategy with a trained part promises: what it is, which file it reads, and what it refuses unread."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import StrategySpec
from harness.config.options import build_strategy
from harness.contracts import ModelInfo, Strategy
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact, write_artefact
from harness.models.controllers import OBSERVATIONS, Network, Observation, write_controller
from harness.training.identity import identity

FILES = {
    "classifier": "heads", "lte": "heads", "rl": "agent", "consistent": "policies", "sec": "heads", "hash": "table",
    "predictor": "predictor",
}  # fmt: skip
"""Strategy → the option that names its file."""


def write(kind: str, model: ModelInfo, name: str = "", fill: float = 0.0, **facts: Any) -> Artefact:
    path = Path(model.artefacts[0]) / f"{name or kind}.json"
    described = identity(model, "t") | {"threshold": 0.6} | facts
    if kind == "hash":
        shares = torch.full((1, len(model.exit_points)), fill).half()
        return write_artefact(path, kind, {"token_ids": torch.tensor([3]).int(), "shares": shares}, described)
    if kind == "predictor":
        made: dict[str, Any] = {"candidates": 2, "head": "full", "activation": "relu"}
        tensors = {"4.0.weight": torch.full((1, 6), fill)}
        return write_artefact(path, kind, tensors, made | described)
    names = ("shared",) if kind in ("lte", "rl") else map(str, model.exit_points)
    outputs = 3 if kind == "sec" else 1
    networks = {
        one: Network(((torch.full((outputs, model.hidden_size), fill), torch.zeros(outputs)),)) for one in names
    }
    made = {"temperature": 1.0, "stop": 0.75}
    return write_controller(path, kind, Observation(), networks, made | described)


def build(kind: str, file: str = "") -> Strategy:
    head = (("head", "full"),) if kind == "predictor" else ()
    return build_strategy(StrategySpec(kind, (*head, *([(FILES[kind], file)] if file else []))))


@pytest.mark.parametrize("kind", FILES)
def test_the_record_names_the_file_that_decides(kind: str, model: ModelInfo) -> None:
    own, other = write(kind, model), write(kind, model, f"{kind}-java", 1.0)
    assert own.sha256 != other.sha256
    assert list(build(kind).artefacts(model).values()) == list(own.hashes().values())
    for named in (f"{kind}-java", str(other.path)):
        assert list(build(kind, named).artefacts(model).values()) == list(other.hashes().values())
    assert build(kind).exit_points(model) == model.exit_points


@pytest.mark.parametrize("kind", FILES)
def test_without_the_file_the_commands_are_named_in_order(kind: str, model: ModelInfo) -> None:
    untuned = dataclasses.replace(model, weights="pretrained")
    for ask in (build(kind).exit_points, build(kind).artefacts):
        with pytest.raises(ArtefactError, match=rf"there is no {kind}\.json for model") as refused:
            ask(untuned if kind == "rl" else model)
        message = str(refused.value)
        commands = ["harness trace --model model", f"harness train {kind} --model model"]
        if kind == "rl":  # one command makes all that weights as they are need
            commands = ["harness prepare model --agent"]
        places = [message.index(f"`{command}") for command in commands]
        assert places == sorted(places)
        assert "\n" not in message


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_other_weights_or_another_kind_is_refused_before_tensors_are_read(
    kind: str, model: ModelInfo, tmp_path: Path
) -> None:
    write(kind, dataclasses.replace(model, fingerprint="0ddba11"))
    (tmp_path / f"{kind}.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"was trained with weights 0ddba11 .* runs with 5ca1ab1e"):
        build(kind).exit_points(model)
    other = write("lte" if kind == "classifier" else "classifier", model)
    with pytest.raises(ArtefactError, match=rf"holds no {kind}"):
        build(kind, str(other.path)).exit_points(model)


def test_what_looks_back_wants_the_exit_points_it_was_trained_at(model: ModelInfo) -> None:
    head = Network(((torch.zeros(1, model.hidden_size + 3), torch.zeros(1)),))
    facts = identity(model, "t") | {"threshold": 0.6}
    path = Path(model.artefacts[0]) / "lte.json"
    write_controller(path, "lte", OBSERVATIONS["rich"], {"shared": head}, facts)
    fewer = dataclasses.replace(model, exit_points=model.exit_points[::2])
    with pytest.raises(ArtefactError, match=r"Use --exit-points 4,6,8,10,12,14,18,22,26, or train it again"):
        build("lte").exit_points(fewer)
    write("lte", model, "lte-normal")
    assert build("lte", "lte-normal").exit_points(fewer) == fewer.exit_points
