"""A controller is found by name or path, refused where it is another model's, and scores what it was trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ModelInfo
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact
from harness.models.controllers import (
    OBSERVATIONS,
    Controller,
    Network,
    Observation,
    find_controller,
    write_controller,
)
from harness.training.identity import identity
from tests.crossing import in_turn
from tests.decoding.conftest import random_network

POINTS, WIDTH, ROWS = (4, 6, 10), 8, 7
TRAIN = (
    "(minutes to hours to trace; minutes to train): `harness trace --model owner/m --out traces/m` ; "
    "`harness train rl --model owner/m --traces traces/m`"
)
TUNE_AND_TRAIN = (
    "(hours to tune, without which the base weights serve; minutes to hours to trace; minutes to train): "
    "`harness train lite --model owner/m` ; `harness trace --model owner/m --out traces/m` ; "
    "`harness train rl --model owner/m --traces traces/m`"
)

ALONE = Observation(normalise=True, place=True)
CHAINED = Observation(normalise=True, change=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artefacts"


@pytest.fixture
def model(folder: Path) -> ModelInfo:
    return ModelInfo(
        "owner/m", "llama", 12, WIDTH, 97, POINTS, 100, "float32", "pretrained", 1, 1, 1, 1,
        fingerprint="5ca1ab1e", base_fingerprint="5ca1ab1e", artefacts=(str(folder),),
    )  # fmt: skip


def networks(observation: Observation, *, shared: bool) -> dict[str, Network]:
    names = ["shared"] if shared else [str(point) for point in POINTS]
    width, first = observation.width(WIDTH, len(POINTS)), 10 if observation.change else 0
    return {name: random_network(width, 5, 1, seed=seed) for seed, name in enumerate(names, first)}


def write(
    path: Path, model: ModelInfo, observation: Observation = ALONE, kind: str = "rl", *, shared: bool = True
) -> Artefact:
    """A controller that was trained for a model."""
    facts = {**identity(model, "t"), "threshold": 0.9}
    return write_controller(path, kind, observation, networks(observation, shared=shared), facts)


def find(model: ModelInfo, name: str = "") -> Controller:
    return find_controller("rl", name, model)


def refusal(model: ModelInfo, name: str = "") -> str:
    with pytest.raises(ArtefactError) as refused:
        find(model, name)
    message = str(refused.value)
    assert "\n" not in message
    return message


@in_turn(observation=[*OBSERVATIONS.values(), ALONE], shared=[True, False])
def test_what_was_written_is_found(folder: Path, model: ModelInfo, observation: Observation, shared: bool) -> None:
    written = write(folder / "rl.json", model, observation, shared=shared)
    found = find(model)
    assert (found.observation, found.exit_points) == (observation, POINTS)
    assert found.artefact.sha256 == written.sha256
    assert found.artefact.facts == identity(model, "t") | {
        "observation": observation.as_dict(),
        "activation": "relu",
        "threshold": 0.9,
    }
    assert find(model) is found  # read once
    assert found.scorer("cpu") is find(model).scorer("cpu")


def test_a_controller_goes_by_path_by_name_or_by_its_kind(folder: Path, model: ModelInfo, tmp_path: Path) -> None:
    for name in ("rl", "rl-java", "rl-0.5"):
        write(folder / f"{name}.json", model, shared=name == "rl")
    elsewhere = write(tmp_path / "else" / "mine.json", model, CHAINED)
    assert find(model).artefact.path == folder / "rl.json"
    for name in ("rl-java", "rl-0.5"):  # what is behind a dot is no ending of a file
        assert find(model, name).artefact.path == folder / f"{name}.json"
    assert " There are: rl, rl-0.5, rl-java. " in refusal(model, "rl-python")
    for path in (elsewhere.path, elsewhere.path.with_suffix(".safetensors"), elsewhere.path.with_suffix("")):
        assert find(model, str(path)).artefact.sha256 == elsewhere.sha256


def test_one_of_other_weights_does_not_hide_the_one_that_fits(model: ModelInfo, tmp_path: Path) -> None:
    """Heads of the untuned model in artefacts/, those of the tuned one among the shipped."""
    folders = [tmp_path / name for name in ("own", "broken", "shipped")]
    several = replace(model, artefacts=tuple(map(str, folders)))
    write(folders[0] / "rl.json", replace(model, fingerprint="0ther"))
    folders[1].mkdir()
    (folders[1] / "rl.json").write_text("{")
    fits = write(folders[2] / "rl.json", model)
    assert find(several).artefact.sha256 == fits.sha256
    nobody = replace(several, fingerprint="n0body")
    assert refusal(nobody).startswith(f"{folders[0] / 'rl.json'} was trained with weights 0ther")


def test_a_missing_controller_names_its_place_and_the_command(folder: Path, model: ModelInfo) -> None:
    said = refusal(model)
    assert said.startswith(f"there is no rl.json for owner/m in {folder}. Make it with ")
    assert said.endswith(": `harness prepare owner/m --agent`")
    assert "there is no rl.json for owner/m in artefacts/m. Make" in refusal(replace(model, artefacts=()))


@pytest.mark.parametrize(
    ("what", "theirs", "ours", "remedy"),
    [
        ("weights", {"fingerprint": "0ddba11"}, "5ca1ab1e", TUNE_AND_TRAIN),
        ("hidden size", {"hidden_size": 16}, "8", TRAIN),  # tuning would change nothing of it
    ],
)
def test_another_model_s_controller_is_refused_with_both_values(
    folder: Path, model: ModelInfo, what: str, theirs: dict[str, Any], ours: str, remedy: str
) -> None:
    write(folder / "rl.json", replace(model, name="other/model", **theirs))
    (value,) = theirs.values()
    assert refusal(model) == (
        f"{folder / 'rl.json'} was trained with {what} {value} (other/model); owner/m runs with {ours}. "
        f"Train it for this model {remedy.removesuffix('`')} --overwrite`"
    )


@pytest.mark.parametrize(
    ("asked", "alone", "chained"),
    [
        ((4, 6, 10), True, True),
        ((4, 10), True, False),  # who looks back from 10 to 6 in training must not look back to 4
        ((6,), True, False),
        ((4, 6, 8, 10), False, False),
        ((5,), False, False),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_exit_points_must_be_those_it_was_trained_at(
    folder: Path, model: ModelInfo, asked: tuple[int, ...], alone: bool, chained: bool, shared: bool
) -> None:
    here = replace(model, exit_points=asked)
    for observation, fits in ((ALONE, alone), (CHAINED, chained)):
        write(folder / "rl.json", model, observation, shared=shared)
        os.utime(folder / "rl.json", (1, 2 + fits * 2 + observation.change))
        if fits:
            assert find(here).exit_points == POINTS
        else:
            assert refusal(here) == (
                f"{folder / 'rl.json'} was trained at exit points 4, 6, 10; this run has "
                f"{', '.join(map(str, asked))}. Use --exit-points 4,6,10, or train it again "
                f"{TRAIN.removesuffix('`')} --overwrite`"
            )


@dataclass
class View:
    """One exit point of some rows."""

    exit_layer: int
    hidden_state: Tensor
    exit_state: Tensor
    previous: View | None

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


@pytest.fixture
def views() -> Callable[..., list[Any]]:
    """``views(layers)``: the same rows at these exit points; a state depends on its layer alone."""

    def make(layers: Sequence[int] = POINTS, dtype: torch.dtype = torch.float32) -> list[Any]:
        made: list[View] = []
        for layer in layers:
            chance = torch.Generator().manual_seed(layer)
            hidden, through = torch.randn(2, ROWS, WIDTH, generator=chance).mul(layer).to(dtype)
            made.append(View(layer, hidden, through, made[-1] if made else None))
        return made

    return make


def naive(observation: Observation, written: dict[str, Network], views: list[Any]) -> list[Tensor]:
    """Scores at every exit point that was trained: the observation of all states through its network."""
    states = torch.stack(
        [view.exit_state if observation.state == "exit" else view.hidden_state for view in views], dim=1
    )
    inputs = observation.build_all(states)
    each = [written.get(str(view.exit_layer), written.get("shared")) for view in views]
    return [net(inputs[:, e])[:, 0] for e, net in enumerate(each) if net is not None]


@in_turn(
    observation=[*OBSERVATIONS.values(), ALONE, Observation("exit"), Observation(change=True, place=True)],
    shared=[True, False],
    dtype=[torch.float32, torch.float16, torch.float16],
)
def test_a_score_is_the_network_of_the_observation(
    folder: Path, model: ModelInfo, views: Callable[..., list[Any]], observation: Observation, shared: bool,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    write(folder / "rl.json", model, observation, shared=shared)
    score, seen = find(model).scorer("cpu"), views(dtype=dtype)
    expected = naive(observation, networks(observation, shared=shared), seen)
    assert len(expected) == len(POINTS)
    for view, wanted in zip(seen, expected, strict=True):
        got = score(view)
        assert (got.shape, got.dtype) == ((ROWS,), torch.float32)
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_fewer_exit_points_keep_the_places_of_training(
    folder: Path, model: ModelInfo, views: Callable[..., list[Any]], shared: bool
) -> None:
    write(folder / "rl.json", model, ALONE, shared=shared)
    score = find(replace(model, exit_points=(6, 10))).scorer("cpu")
    for view, wanted in zip(views((6, 10)), naive(ALONE, networks(ALONE, shared=shared), views())[1:], strict=True):
        torch.testing.assert_close(score(view), wanted, atol=1e-4, rtol=1e-4)
