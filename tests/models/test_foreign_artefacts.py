"""Artefacts as anybody may write them: every fact that is read and every tensor that is used is checked before."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.contracts import ModelInfo
from harness.errors import ArtefactError
from harness.models.artefacts import look_into, read_artefact, write_artefact
from harness.models.controllers import Controller, Network, Observation, find_controller, write_controller
from harness.models.exit_modules import read_shortcuts
from harness.models.ngrams import NgramIndex, SeenDocuments, find_seen, read_index, write_index
from harness.models.trained import find
from harness.models.weights import merge
from strategies.classifier import Classifier
from strategies.lte import LearnToExit
from strategies.rl import ReinforcementLearning
from tests.crossing import in_turn

pytestmark = pytest.mark.timeout(60)

BASE, POINTS, WIDTH = "ba5e" * 4, (4, 6, 10), 8


def info(folder: Path) -> ModelInfo:
    return ModelInfo(
        "m", "llama", 12, WIDTH, 97, POINTS, 100, "float32", "pretrained", 1, 1, 1, 1,
        fingerprint=BASE, base_fingerprint=BASE, artefacts=(str(folder),),
    )  # fmt: skip


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(ArtefactError) as refused:
        act()
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def change(path: Path, text: str | None = None, **facts: Any) -> None:
    """Set facts in a JSON; ``text`` stands for a value that Python would not write."""
    said = json.dumps(json.loads(path.read_text()) | facts)
    path.write_text(said if text is None else said.replace('"@"', text))


def of_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Exchange the tensors of an artefact, vouched for by its JSON."""
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    path.with_suffix(".safetensors").write_bytes(content)
    change(path, sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    factors = {"up.lora_A": torch.ones(2, 5), "up.lora_B": torch.ones(7, 2)}
    return write_artefact(tmp_path / "adapter.json", "adapter", factors, {"model_fingerprint": BASE, "scale": 2.0}).path


@pytest.fixture
def shortcut(tmp_path: Path) -> Path:
    maps = {f"{point}.weight": torch.eye(WIDTH) for point in POINTS}
    maps |= {f"{point}.bias": torch.zeros(WIDTH) for point in POINTS}
    facts = {"model_fingerprint": BASE, "exit_points": list(POINTS), "adapter_sha256": None}
    return write_artefact(tmp_path / "shortcut.json", "shortcut", maps, facts).path


def controller(folder: Path, kind: str = "rl", *, shared: bool = True, hidden: int = 0, **facts: Any) -> Path:
    observation = Observation(normalise=True, place=True)
    width = observation.width(WIDTH, len(POINTS))
    widths = (width, hidden, 1) if hidden else (width, 1)
    networks = {
        name: Network(tuple((torch.randn(b, a), torch.randn(b)) for a, b in itertools.pairwise(widths)))
        for name in (["shared"] if shared else map(str, POINTS))
    }
    described = {
        "model": "m", "model_fingerprint": BASE, "exit_head": "shared", "exit_points": list(POINTS),
        "hidden_size": WIDTH, "threshold": 0.9,
    }  # fmt: skip
    return write_controller(folder / f"{kind}.json", kind, observation, networks, described | facts).path


NO_TEXT = (None, 5, 1.5, True, [], {}, ["x"])
NO_LAYERS = (None, 4, "4,6", {}, [0], [-1], [1001], [10**17], ["4"], [4.5], [True], [4, 4], [6, 4], [[4]])
NO_NUMBER = (None, "x", [], {}, [1.0], True)


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        *(("model_fingerprint", value) for value in NO_TEXT),
        *(("exit_head", value) for value in NO_TEXT),
        *(("exit_points", value) for value in NO_LAYERS),
        *(("scale", value) for value in (*NO_NUMBER, 1e300)),
        *(("documents", value) for value in (None, 5, "key", {}, [5], [None], [["x"]])),
        *(("hidden_size", value) for value in (None, 0, -1, 10**17, "8", 1.5)),
        *(("ngrams", value) for value in (5, "x", [])),
        *(("adapter_sha256", value) for value in (5, [], {})),
    ],
    ids=repr,
)
def test_a_fact_of_another_type_or_range_is_named(adapter: Path, shortcut: Path, fact: str, value: object) -> None:
    for path, look in (
        (adapter, lambda: find("adapter", info(adapter.parent))),
        (shortcut, lambda: find("shortcut", info(shortcut.parent))),
    ):
        look()
        change(path, **{fact: value})
        message = refusal(look)
        assert message.startswith(f"{path} lacks what a {path.stem} needs ({fact}")
        assert message.endswith("). Train it again.")
        assert look_into(path) == {}


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_what_is_no_file_is_not_opened(adapter: Path, put: Callable[[Path], str], name: str) -> None:
    said = put(adapter.with_name(name))
    assert f"{name}: {said}" in refusal(lambda: read_artefact(adapter, "adapter").tensors())
    if name == "adapter.json":  # not passed over for the base weights
        assert f"{name}: {said}" in refusal(lambda: find("adapter", info(adapter.parent)))
    assert find_seen(BASE, [adapter.parent]) == SeenDocuments()


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        *(("threshold", value) for value in (*NO_NUMBER,)),
        *(("activation", value) for value in (None, 5, "gelu", ["relu"])),
        *(("observation", value) for value in (None, 5, [], "x")),
        *(("observation", {"state": value}) for value in (None, 5, "logits", ["hidden"], {})),
        *(("observation", {flag: value}) for flag in ("normalise", "change", "place") for value in (None, 1, "yes")),
        ("observation", {"more": True}),
        *(("exit_points", value) for value in NO_LAYERS),
        *(("hidden_size", value) for value in (None, 0, "8", 16)),
        *(("model", value) for value in NO_TEXT),
    ],
    ids=repr,
)
def test_a_fact_of_a_controller_that_cannot_be_is_refused(tmp_path: Path, fact: str, value: object) -> None:
    path = controller(tmp_path)
    change(path, **{fact: value})
    assert str(path) in refusal(lambda: find_controller("rl", "", info(tmp_path))) or fact == "observation"


@pytest.mark.parametrize(
    ("strategy", "facts"),
    [
        *((Classifier, {"threshold": value}) for value in (-0.1, 1.1, 1e300)),
        *((LearnToExit, {"threshold": value}) for value in (-0.1, 2.1, -1e300)),
        *((ReinforcementLearning, {"threshold": value}) for value in (-0.1, 1.5)),
        *((ReinforcementLearning, {"temperature": value}) for value in (0, -1.0, "x", None)),
    ],
    ids=repr,
)
def test_a_controller_saved_with_what_its_strategy_forbids_is_refused(
    tmp_path: Path, strategy: Any, facts: dict[str, Any]
) -> None:
    path = controller(tmp_path, strategy.kind, **facts)
    message = refusal(lambda: strategy().exit_points(info(tmp_path)))
    assert str(path) in message
    assert next(iter(facts)) in message


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "another shape": (lambda tensor: torch.cat([tensor, tensor]), "has shape"),
    "no dimension": (lambda tensor: torch.tensor(1.0), "has shape"),
    "nothing": (lambda tensor: tensor[:0], "has shape"),
    "another dimension": (lambda tensor: tensor.unsqueeze(0), "has shape"),
    "whole numbers": (lambda tensor: tensor.to(torch.int32), "is of torch.int32"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "is of torch.complex64"),
    "NaN": (lambda tensor: tensor.index_fill(0, torch.tensor([0]), torch.nan), "holds NaN"),
    "infinity": (lambda tensor: tensor.index_fill(0, torch.tensor([0]), -torch.inf), "holds infinity"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["6.weight", "6.bias"])
def test_a_shortcut_that_is_none_is_named(shortcut: Path, name: str, wrong: str) -> None:
    found = read_artefact(shortcut, "shortcut")
    tensors, (spoil, said) = found.tensors(), WRONG[wrong]
    of_tensors(shortcut, tensors | {name: spoil(tensors[name])})

    def read() -> object:
        return read_shortcuts(read_artefact(shortcut, "shortcut"), POINTS, torch.float32, "cpu", hidden_size=WIDTH)

    assert refusal(read).startswith(f"{shortcut.with_suffix('.safetensors')}: {name} {said}")
    of_tensors(shortcut, {key: tensor for key, tensor in tensors.items() if key != name})
    assert f"{name} is missing" in refusal(read)


def test_shortcuts_of_another_width_or_beyond_the_dtype_are_refused(shortcut: Path) -> None:
    def read(dtype: torch.dtype, width: int) -> object:
        return read_shortcuts(read_artefact(shortcut, "shortcut"), POINTS, dtype, "cpu", hidden_size=width)

    assert "4.weight has shape (8, 8), and (16, 16) is needed" in refusal(lambda: read(torch.float32, 16))
    tensors = read_artefact(shortcut, "shortcut").tensors()
    of_tensors(shortcut, tensors | {"4.weight": 1e6 * tensors["4.weight"]})
    read(torch.float32, WIDTH)
    assert "4.weight holds infinity in torch.float16" in refusal(lambda: read(torch.float16, WIDTH))


@in_turn(rounds=2, wrong=list(WRONG), part=["0.weight", "0.bias", "1.weight", "1.bias"], shared=[True, False, False])
def test_a_network_that_is_none_is_named(tmp_path: Path, part: str, shared: bool, wrong: str) -> None:
    path = controller(tmp_path, shared=shared, hidden=5)
    name = f"{'shared' if shared else 6}.{part}"
    tensors, (spoil, _) = read_artefact(path, "rl").tensors(), WRONG[wrong]
    find_controller("rl", "", info(tmp_path)).scorer("cpu")
    of_tensors(path, tensors | {name: spoil(tensors[name])})
    again = controller_of(path)
    assert f"{path.with_suffix('.safetensors')}: {name.rpartition('.')[0].partition('.')[0]}." in refusal(
        lambda: again.scorer("cpu")
    )
    of_tensors(path, {key: tensor for key, tensor in tensors.items() if key != name})
    assert refusal(lambda: controller_of(path).scorer("cpu"))


def controller_of(path: Path) -> Controller:
    return Controller(read_artefact(path, "rl"), Observation(normalise=True, place=True), POINTS)


@pytest.mark.parametrize("wrong", [wrong for wrong in WRONG if wrong not in ("whole numbers", "complex")])
@pytest.mark.parametrize("name", ["up.lora_A", "up.lora_B"])
def test_an_update_that_is_none_is_refused(adapter: Path, name: str, wrong: str) -> None:
    tensors, (spoil, _) = read_artefact(adapter, "adapter").tensors(), WRONG[wrong]
    module = nn.ModuleDict({"up": nn.Linear(5, 7)}).requires_grad_(requires_grad=False)
    merge(module, read_artefact(adapter, "adapter"))
    of_tensors(adapter, tensors | {name: spoil(tensors[name])})
    assert str(adapter.with_suffix("")) in refusal(lambda: merge(module, read_artefact(adapter, "adapter")))


@pytest.fixture
def index(tmp_path: Path) -> dict[str, Any]:
    return write_index(tmp_path, NgramIndex.of([range(500)]))


@pytest.mark.parametrize(
    ("counts", "low", "said"),
    [
        (torch.full((1 << 16,), 2**31 - 1, dtype=torch.int32), torch.zeros(3, dtype=torch.int16), "another type"),
        (torch.full((1 << 16,), 65535, dtype=torch.uint16), torch.zeros(3, dtype=torch.uint16), "hashes and holds"),
        (torch.zeros(5, dtype=torch.uint16), torch.zeros(0, dtype=torch.uint16), "another type or shape"),
        (torch.ones(1 << 16), torch.zeros(1 << 16, dtype=torch.uint16), "another type or shape"),
        (None, torch.zeros(3, dtype=torch.uint16), "KeyError: 'counts'"),
    ],
)
def test_an_index_that_counts_wrong_is_refused(
    tmp_path: Path, index: dict[str, Any], counts: Tensor | None, low: Tensor, said: str
) -> None:
    from safetensors.torch import save

    content = save({"low": low} | ({} if counts is None else {"counts": counts}))
    (tmp_path / index["file"]).write_bytes(content)
    facts = index | {"sha256": hashlib.sha256(content).hexdigest()}
    assert said in refusal(lambda: read_index(tmp_path, facts))
