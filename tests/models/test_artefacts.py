"""Tensors and their JSON, on disk and back; and everything that is refused instead of read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import ArtefactError
from harness.models.artefacts import Artefact, read_artefact, write_artefact

FACTS: dict[str, Any] = {"model": "m", "exit_points": [4, 6], "scale": 2.0, "made": {"command": "harness train rl"}}


def tensors() -> dict[str, Tensor]:
    return {
        "shared.0.weight": torch.arange(6, dtype=torch.float32).view(2, 3).t(),  # not contiguous
        "shared.0.bias": torch.tensor([0.5, -1.5, 3.0], dtype=torch.float16),
        "4.weight": torch.full((2, 2), 1.5, dtype=torch.bfloat16).requires_grad_(),
        "steps": torch.tensor([7]),
    }


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    return write_artefact(tmp_path / "made" / "rl.json", "rl", tensors(), FACTS)


@pytest.fixture
def file(artefact: Artefact) -> Path:
    """The tensors of the artefact."""
    return artefact.path.with_suffix(".safetensors")


def read_all(path: Path) -> dict[str, Tensor]:
    return read_artefact(path, "rl").tensors()


def refusal(path: Path, kind: str = "rl", *, tensors: bool = False) -> str:
    """What reading the JSON, or the tensors too, is refused with: one line."""
    with pytest.raises(ArtefactError) as refused:
        _ = read_all(path) if tensors else read_artefact(path, kind)
    message = str(refused.value)
    assert "\n" not in message
    return message


def change(artefact: Artefact, **facts: Any) -> None:
    """Set facts in the JSON; ``None`` takes one away."""
    found = json.loads(artefact.path.read_text()) | facts
    artefact.path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


@pytest.mark.parametrize("name", ["rl.json", "rl.safetensors", "rl"])
def test_what_was_written_is_read_by_any_of_its_names(artefact: Artefact, name: str) -> None:
    found = read_artefact(artefact.path.with_name(name), "rl")
    assert (found.kind, found.path, found.facts, found.sha256) == ("rl", artefact.path, FACTS, artefact.sha256)
    for one in (artefact, found):
        read = one.tensors()
        assert read.keys() == tensors().keys()
        for key, tensor in tensors().items():
            assert read[key].dtype == tensor.dtype
            assert torch.equal(read[key], tensor), key


@pytest.mark.parametrize("place", [0, 8, -1])
def test_one_flipped_bit_in_the_tensors_is_noticed(artefact: Artefact, file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert refusal(artefact.path, tensors=True) == (
        f"{file} is not the file that its JSON describes (its hash differs). Make the rl again."
    )


@pytest.mark.parametrize("length", [0, 40, -1])
def test_tensors_broken_off_are_refused_even_with_their_own_hash(artefact: Artefact, file: Path, length: int) -> None:
    content = file.read_bytes()[:length]
    file.write_bytes(content)
    assert "its hash differs" in refusal(artefact.path, tensors=True)
    change(artefact, sha256=hashlib.sha256(content).hexdigest())
    message = refusal(artefact.path, tensors=True)
    assert message.startswith(f"{file} is damaged: ")
    assert message.endswith("Make the rl again.")
    file.unlink()
    assert read_artefact(artefact.path, "rl").facts == FACTS  # the JSON alone is enough for checks
    assert refusal(artefact.path, tensors=True).startswith(f"cannot read {file}: No such file or directory. Make the")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"format": None}, "is not an artefact of format 1 (it says None). Make it again."),
        ({"format": 2}, "is not an artefact of format 1 (it says 2)"),
        ({"sha256": None}, "does not say which tensors belong to it"),
        ({"kind": "lte"}, "holds no rl. Give the .json that `harness train` wrote for it."),
        ({"kind": None}, "holds no rl"),
    ],
)
def test_a_json_that_is_no_artefact_s_is_refused(artefact: Artefact, facts: dict[str, Any], said: str) -> None:
    change(artefact, **facts)
    assert refusal(artefact.path).startswith(f"{artefact.path} {said}")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._folder),)


@pytest.fixture
def went_off(tmp_path: Path) -> Path:
    return tmp_path / "went-off"


@pytest.fixture(params=["pickle", "pickle-text", "torch.save", "torch.save-legacy"])
def pickled(request: pytest.FixtureRequest, went_off: Path) -> bytes:
    """A pickle of every form, shown to be live."""
    bomb, stream = Bomb(went_off), io.BytesIO()
    if request.param.startswith("torch"):
        torch.save(bomb, stream, _use_new_zipfile_serialization=request.param == "torch.save")
        torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    else:
        pickle.dump(bomb, stream, protocol=0 if request.param == "pickle-text" else None)
        pickle.loads(stream.getvalue())
    went_off.rmdir()
    return stream.getvalue()


@pytest.mark.parametrize("name", ["rl.zip", "rl.pkl", "rl.pickle", "rl.pt", "rl.pth", "rl.bin", "rl.ckpt"])
def test_a_pickle_by_name_is_refused_whatever_lies_beside_it(
    artefact: Artefact, pickled: bytes, went_off: Path, name: str
) -> None:
    path = artefact.path.with_name(name)
    path.write_bytes(pickled)
    message = refusal(path, tensors=True)
    assert message.startswith(f"{path} may be a pickle, which can run code when it is read")
    assert message.endswith("Give the .json that `harness train` wrote.")
    assert not went_off.exists()


@pytest.mark.parametrize("vouched", [False, True])
def test_a_pickle_named_safetensors_is_refused_even_where_the_json_vouches_for_it(
    artefact: Artefact, file: Path, pickled: bytes, went_off: Path, vouched: bool
) -> None:
    file.write_bytes(pickled)
    if vouched:
        change(artefact, sha256=hashlib.sha256(pickled).hexdigest())
    for path in (artefact.path, file):
        message = refusal(path, tensors=True)
        assert (f"{file} is damaged: " if vouched else "its hash differs") in message
    assert not went_off.exists()


def test_an_earlier_artefact_outlives_a_failed_one(tmp_path: Path) -> None:
    path = tmp_path / "rl.json"
    write_artefact(path, "rl", {"a": torch.ones(2)}, {})
    (tmp_path / ".rl.json.part").mkdir()  # stands for a full disk
    with pytest.raises(ArtefactError, match=r"cannot write .*rl\.json"):
        write_artefact(path, "rl", {"a": torch.zeros(2)}, {})
    assert torch.equal(read_artefact(path, "rl").tensors()["a"], torch.ones(2))
