"""Which adapter and which shortcuts a model takes, whose are refused, and what a merge does to weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.contracts import ModelInfo, ModelRequest
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact, write_artefact
from harness.models.folder import fingerprint_of_folder
from harness.models.model import ResolvedModel, resolve
from harness.models.trained import Missing, artefact_folders, find, require, shortcut_path, tuned_fingerprint
from harness.models.weights import merge

BASE, OTHER = "ba5e" * 4, "07e4" * 4
POINTS, WIDTH = (4, 6, 10), 32


def model_of(known: str, name: str = "m", points: tuple[int, ...] = POINTS, **asked: Any) -> ModelInfo:
    """A model whose adapter or shortcuts are looked for."""
    return ModelInfo(
        name=name, family="llama", num_layers=12, hidden_size=WIDTH, vocab_size=320, exit_points=points,
        max_positions=64, dtype="float32", weights="pretrained", layer_bytes=1, lm_head_bytes=1, kv_projection_bytes=1,
        kv_entry_bytes=1, fingerprint=known, asked=ModelRequest(model=name, **asked),
    )  # fmt: skip


def part(kind: str, known: str, folders: Sequence[Path], points: tuple[int, ...] = POINTS) -> Artefact | None:
    found = find(kind, model_of(known, points=points), folders)
    return None if isinstance(found, Missing) else found


def write_adapter(
    folder: Path, base: str = BASE, factors: Mapping[str, Tensor] | None = None, scale: float = 2.0, **facts: Any
) -> Artefact:
    tensors = {"up.lora_A": torch.ones(1, 2), "up.lora_B": torch.ones(3, 1)} if factors is None else factors
    return write_artefact(
        folder / "adapter.json", "adapter", tensors, {"model_fingerprint": base, "scale": scale, **facts}
    )


def write_shortcut(
    folder: Path,
    base: str = BASE,
    *,
    adapter: Artefact | None = None,
    points: Sequence[int] = POINTS,
    name: str = "shortcut",
    **facts: Any,
) -> Artefact:
    chance = torch.Generator().manual_seed(sum(points))
    tensors: dict[str, Tensor] = {}
    for point in points:
        tensors[f"{point}.weight"] = torch.randn(WIDTH, WIDTH, generator=chance).bfloat16()
        tensors[f"{point}.bias"] = torch.randn(WIDTH, generator=chance).bfloat16()
    belongs = {"model_fingerprint": base, "exit_points": list(points), "adapter_sha256": adapter and adapter.sha256}
    return write_artefact(folder / f"{name}.json", "shortcut", tensors, belongs | facts)


def test_a_folder_that_is_given_is_the_only_one_and_the_user_s_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.models.trained.SHIPPED", tmp_path / "shipped")
    user, shipped = Path("artefacts"), tmp_path / "shipped"
    for folder in (user / "m", shipped / "m", shipped / "m-paper", Path("mine")):
        folder.mkdir(parents=True)
    assert artefact_folders("owner/m", None) == (user / "m", shipped / "m")
    assert artefact_folders("m", "mine") == (Path("mine"),)
    assert artefact_folders("m", "m-paper") == (shipped / "m-paper",)
    Path("m-paper").mkdir()
    assert artefact_folders("m", "m-paper") == (Path("m-paper"),)


def test_the_first_adapter_of_the_weights_is_taken(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("empty", "foreign", "mine", "shipped")]
    bases = (OTHER, BASE, BASE)
    foreign, mine, shipped = (write_adapter(folder, base) for folder, base in zip(folders[1:], bases, strict=True))
    found = [part("adapter", BASE, some) for some in (folders, folders[::-1], folders[:2], [])]
    assert [adapter and adapter.path for adapter in found] == [mine.path, shipped.path, None, None]
    adapter = part("adapter", OTHER, folders)
    assert adapter is not None
    assert adapter.path == foreign.path


def test_no_adapter_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError) as refused:
        require(find("adapter", model_of(BASE, "owner/m", weights="tuned"), [tmp_path]))
    assert str(refused.value) == (
        "there is no adapter for owner/m. "
        "Use --weights pretrained, or make it with (hours): `harness train lite --model owner/m`"
    )
    with pytest.raises(ArtefactError, match=r"with \(hours\): `harness train lite --model owner/m --out here`$"):
        require(find("adapter", model_of(BASE, "owner/m", artefacts="here"), [tmp_path]))


def test_shortcuts_belong_to_base_weights_or_to_those_with_one_adapter(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path)
    of_base = write_shortcut(tmp_path / "base")
    of_tuned = write_shortcut(tmp_path / "tuned", adapter=adapter)
    folders = [tmp_path / "base", tmp_path / "tuned"]
    weights = {
        BASE: of_base,
        tuned_fingerprint(BASE, adapter.sha256): of_tuned,
        OTHER: None,
        tuned_fingerprint(OTHER, adapter.sha256): None,
        tuned_fingerprint(BASE, of_base.sha256): None,  # the same base with another adapter
    }
    for known, expected in weights.items():
        for order in (folders, folders[::-1]):
            found = part("shortcut", known, order, POINTS)
            assert (found and found.path) == (expected and expected.path)
            if expected is None:
                with pytest.raises(ArtefactError, match=f"weights {known}, exit points 4, 6, 10"):
                    require(find("shortcut", model_of(known), order))
            else:
                assert require(find("shortcut", model_of(known), order)).sha256 == expected.sha256


@pytest.mark.parametrize(
    ("known", "points", "name"),
    [(BASE, POINTS, ""), (OTHER, POINTS, "-07e407e4"), (BASE, (4, 6), "-ba5eba5e"), (BASE, (4, 6, 8, 10), "-ba5eba5e")],
)
def test_shortcuts_replace_those_of_the_same_weights_and_exit_points_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, known: str, points: tuple[int, ...], name: str
) -> None:
    wanted = tmp_path / "shortcut.json"
    assert shortcut_path(wanted, known, points) == wanted
    write_shortcut(tmp_path)
    place = shortcut_path(wanted, known, points)
    assert place == tmp_path / f"shortcut{name}.json"
    assert caplog.messages == (
        [f"{wanted} is of other weights or exit points and is kept: these shortcuts are {place}"] if name else []
    )
    write_shortcut(tmp_path, known, points=points, name=place.stem)
    assert shortcut_path(wanted, known, points) == place, "the same ones again"
    write_shortcut(tmp_path, OTHER, points=(4,), name=place.stem)
    assert shortcut_path(place, BASE, (4, 6)) == tmp_path / f"{place.stem}-ba5eba5e.json"
    wanted.write_text("{")
    assert shortcut_path(wanted, known, points) == wanted, "what stops every run"


def small() -> Any:
    """Two linear layers, GPT-2's transposed one, and something without a weight."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "up": nn.Linear(5, 7),
            "deep": nn.ModuleDict({"down": Conv1D(7, 5)}),
            "same": nn.Linear(5, 7),
            "act": nn.GELU(),
        }
    ).requires_grad_(requires_grad=False)


def factors(**shapes: tuple[int, int]) -> dict[str, Tensor]:
    """Rank 2: ``name=(in, out)``; two underscores for a dot."""
    chance = torch.Generator().manual_seed(1)
    made: dict[str, Tensor] = {}
    for name, (width, height) in shapes.items():
        target = name.replace("__", ".")
        made[f"{target}.lora_A"] = torch.randn(2, width, generator=chance)
        made[f"{target}.lora_B"] = torch.randn(height, 2, generator=chance)
    return made


def test_a_merge_adds_scale_b_a(tmp_path: Path) -> None:
    module, base, low = small(), small(), factors(up=(5, 7), deep__down=(5, 7))
    merge(module, write_adapter(tmp_path, factors=low, scale=0.5))
    updates = {name: 0.5 * (low[f"{name}.lora_B"] @ low[f"{name}.lora_A"]) for name in ("up", "deep.down")}
    updates["deep.down"] = updates["deep.down"].t()  # GPT-2's
    for name, before in base.state_dict().items():
        update = updates.get(name.removesuffix(".weight"), 0.0)
        torch.testing.assert_close(module.state_dict()[name], before + update, msg=name)
    assert not torch.equal(module["up"].weight, base["up"].weight)
    for target in ("act", "gone"):
        adapter = write_adapter(tmp_path, factors=factors(**{target: (5, 7)}))
        with pytest.raises(ArtefactError, match=rf"adapter\.json tunes {target}, which this model has not\."):
            merge(small(), adapter)


@pytest.fixture
def resolved(tiny_llama: Path) -> Callable[..., ResolvedModel]:
    """``resolved(weights=…, exit_head=…, artefacts=…, …)``: the tiny llama and what was trained for it."""

    def run(**changes: Any) -> ResolvedModel:
        asked: dict[str, Any] = {
            "weights": "auto", "dtype": "float32", "exit_points": "paper", "exit_head": "auto", "artefacts": None,
        }  # fmt: skip
        return resolve(ModelRequest(str(tiny_llama), **asked | changes))

    return run


@pytest.fixture
def base(tiny_llama: Path) -> str:
    """Fingerprint of the tiny llama by itself."""
    return fingerprint_of_folder(tiny_llama)


TUNED = "model.layers.3.mlp.up_proj"


def tune(folder: Path, base: str) -> tuple[Artefact, Artefact]:
    adapter = write_adapter(folder, base, factors(**{TUNED.replace(".", "__"): (32, 64)}), documents=["k"])
    return adapter, write_shortcut(folder, base, adapter=adapter)


def test_a_folder_of_the_user_s_serves_without_being_asked_for(
    resolved: Callable[..., ResolvedModel], base: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter, shortcut = tune(Path("artefacts") / tiny_llama.name, base)
    found = resolved()
    assert (found.info.weights, found.info.base_fingerprint) == ("tuned", base)
    assert found.info.fingerprint == tuned_fingerprint(base, adapter.sha256)
    assert found.info.exit_head == f"shortcut:{shortcut.sha256[:16]}"
    assert found.info.artefacts == (str(Path("artefacts") / tiny_llama.name),)
    assert found.seen.documents == {"k"}

    loaded = found.load("cpu")
    stored, low = load_file(tiny_llama / "model.safetensors"), adapter.tensors()
    for name, weight in loaded.module.state_dict().items():
        update = 2.0 * (low[f"{TUNED}.lora_B"] @ low[f"{TUNED}.lora_A"]) if name == f"{TUNED}.weight" else 0.0
        torch.testing.assert_close(weight, stored[name] + update, msg=name)
    assert (loaded.module.get_submodule(TUNED).weight - stored[f"{TUNED}.weight"]).abs().max() > 0.1
    assert list(loaded.backbone.shortcuts) == list(POINTS)
    assert {linear.nbytes for linear in loaded.backbone.shortcuts.values()} == {found.info.shortcut_bytes}


def test_what_is_not_asked_for_is_not_used(
    resolved: Callable[..., ResolvedModel], base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tune(tmp_path, base)
    plain = resolved(weights="pretrained", exit_head="shared", artefacts=str(tmp_path))
    assert (plain.info.weights, plain.info.fingerprint, plain.info.exit_head) == ("pretrained", base, "shared")
    assert (plain.adapter, plain.shortcut, plain.info.shortcut_bytes) == (None, None, 0)
    random = resolved(weights="random", artefacts=str(tmp_path))
    assert (random.adapter, random.shortcut, random.info.weights) == (None, None, "random")
    write_adapter(tmp_path, base, exit_head="shortcut")
    for _ in range(2):
        assert resolved(artefacts=str(tmp_path), exit_points="4,6,8").shortcut is None  # no map leads from 8
    assert caplog.messages == [
        f"{tmp_path / 'adapter.json'} was tuned along with shortcuts, and none here lead from exit points 4, 6, 8: "
        "exits are read by the shared head"
    ]
