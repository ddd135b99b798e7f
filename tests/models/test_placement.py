"""Layers on several devices: the same tokens, every product where its matrix is, and refusals of what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from harness.contracts import ModelInfo, ModelRequest
from harness.decoding.engine import Engine
from harness.decoding.packing import PlacedLinear
from harness.errors import ConfigError, OutOfMemoryError
from harness.models.model import resolve
from harness.models.placement import _planned, devices_of, layer_devices, read_placed
from strategies.fixed import Fixed
from strategies.full import Full

PROMPTS = [[5, 9, 11, 40, 7], [3, 8, 21, 6, 17, 30, 2]]


def info_of(folder: Path, device_map: str | None, **changes: Any) -> ModelInfo:
    return resolve(ModelRequest(str(folder), device_map=device_map, **changes)).info


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_in_a_file_give_the_same_tokens(make_model: Callable[..., Path], family: str, dtype: str) -> None:
    folder = make_model(family)
    whole = resolve(ModelRequest(str(folder), dtype=dtype)).load("cpu")
    resolved = resolve(ModelRequest(str(folder), dtype=dtype, device_map="5-9=disk", weights_format="auto"))
    spread = resolved.load("cpu")
    assert [isinstance(block.qkv, PlacedLinear) for block in spread.backbone.blocks] == [
        5 <= layer <= 9 for layer in range(1, 13)
    ]
    assert spread.module is None
    assert spread.weights_sha256 == whole.weights_sha256
    assert resolved.placement("cpu") == {"layers": "layers 1–4 on cpu, 5–9 on disk, 10–12 on cpu"}
    for strategy, kv in ((Full(), "recompute"), (Fixed(layer=6), "propagate"), (Fixed(layer=6), "recompute")):
        expected, got = (
            Engine(one.backbone, one.info).decode(PROMPTS, strategy, kv=kv, max_new_tokens=[9, 9])
            for one in (whole, spread)
        )
        assert [made.token_ids for made in got] == [made.token_ids for made in expected]


def moved(module: nn.Module, device: str) -> nn.Module:
    """``module.to(device)``, which tensors without numbers refuse: their memory cannot be swapped."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    there = tensor.to(device)
                    held[name] = nn.Parameter(there, requires_grad=False) if held is part._parameters else there
    return module


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_no_product_mixes_devices(
    make_model: Callable[..., Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices as tensors without numbers, which refuse what real ones would refuse: torch has no GPU here."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(make_model(family))
    elsewhere = [None] * 6 + ["meta"] * 6
    monkeypatch.setattr(nn.Module, "to", moved)
    with FakeTensorMode(), torch.no_grad():
        module = AutoModelForCausalLM.from_config(config)
        backbone = read_placed(module, "cpu", elsewhere)
        own = torch.device("cpu")
        assert backbone.device == own
        positions = torch.arange(6, device=own)
        hidden = backbone.embed(torch.ones(6, dtype=torch.int64, device=own), positions)
        rotary = backbone.rotary(6) if backbone.rotary is not None else None
        tables = None if rotary is None else rotary.tables(positions)
        for block, where in zip(backbone.blocks, elsewhere, strict=True):
            if where is not None:
                assert isinstance(block.qkv, PlacedLinear)
                assert block.qkv.matrix.weight.device == torch.device(where)
            queries, entries = block.project(hidden, rotary, tables)
            keys, values = entries.transpose(0, 1).chunk(2)
            assert block.fill(hidden, rotary, tables).device == own
            attended = F.scaled_dot_product_attention(queries.transpose(0, 1), keys, values, enable_gqa=True)
            hidden = block.finish(hidden, attended.transpose(0, 1).reshape(6, -1))
            assert hidden.device == own
        assert backbone.logits(hidden).shape == (6, config.vocab_size)
        # what the products above would have said
        with pytest.raises(Exception, match=r"at least two devices|two different devices"):
            backbone.blocks[-1].qkv.matrix(hidden)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("own", "other"), [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")])
def test_the_plan_fills_the_own_device_then_the_others(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, own: str, other: str
) -> None:
    """On a machine that torch is told of: the own GPU also holds keys, values and the head."""
    info = info_of(tiny_llama, "auto")
    kept = 2 * info.lm_head_bytes + 12 * info.kv_entry_bytes * info.max_positions
    room = {own: kept + 5.5 * info.layer_bytes, other: 6.5 * info.layer_bytes, "cpu": 100 * info.layer_bytes}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (room[name] / 0.9 + 1, 0))
    monkeypatch.setattr("harness.models.placement.available_memory_bytes", lambda: room["cpu"] / 0.9)
    _planned.clear()
    where = layer_devices(info, own)
    assert where == (*[None] * 5, *[other] * 6, "cpu")
    assert devices_of(own, where) == f"{own},{other},cpu"
    room["cpu"] = 0
    assert layer_devices(info, own) == where  # planned once: loaded weights would be in the way
    _planned.clear()
    with pytest.raises(OutOfMemoryError, match=r"to 12 of .* fit no device here\. .*=disk\."):
        layer_devices(info, own)
    _planned.clear()


@pytest.mark.parametrize(
    ("device_map", "changes", "said"),
    [
        ("5-13=disk", {}, r"--device-map 5-13=disk: .* has 12 layers, not 13\."),
        ("5-12=disk", {"weights_format": "int8"}, r"--weights-format int8 packs them and compiles layers for one"),
        ("5-12=cuda:99", {}, r"device 'cuda:99' is not here"),
    ],
)
def test_what_cannot_be_combined_is_refused_before_weights(
    tiny_llama: Path, device_map: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(ModelRequest(str(tiny_llama), device_map=device_map, **changes))


def test_a_run_says_where_its_layers_were(
    tiny_run: Callable[..., Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    for name, flags in (("spread", ["--device-map", "7-12=disk"]), ("whole", [])):
        ran = tiny_run("--strategy", "fixed:layer=6", *flags, "--weights-format", "float32", "--out", tmp_path / name)
        assert ran.code == 0, ran.err
    manifest = json.loads((tmp_path / "spread" / "manifest.json").read_text())
    assert manifest["placement"] == {"layers": "layers 1–6 on cpu, 7–12 on disk"}
    assert manifest["config"]["device_map"] == "7-12=disk"
    texts = []
    for name in ("spread", "whole"):
        lines = map(json.loads, (tmp_path / name / "samples.jsonl").read_text().splitlines())
        texts.append(sorted((one["operating_point"], one["sample_id"], one["text"]) for one in lines))
    assert texts[0] == texts[1]
    assert "packs them" in refused("--device-map", "7-12=disk", "--weights-format", "float32,int8")


def test_a_run_goes_on_only_where_its_layers_were(
    tiny_run: Callable[..., Any], cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a repeat, which continues the run of the first one in a process that plans for itself."""

    def free_for(layers: int) -> None:
        _planned.clear()
        monkeypatch.setattr(
            "harness.models.placement._automatic", lambda info, device: [None] * layers + ["disk"] * (12 - layers)
        )

    free_for(6)
    ran = tiny_run("--device-map", "auto", "--weights-format", "float32", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    free_for(8)
    said = cli("run", "--resume", tmp_path / "out").error
    assert "was measured with layers 1–6 on cpu, 7–12 on disk; by" in said
    assert "it would go on with layers 1–8 on cpu, 9–12 on disk. Free memory" in said
    free_for(12)
    assert "would go on with all layers on one device" in cli("run", "--resume", tmp_path / "out").error
    free_for(6)
    assert cli("run", "--resume", tmp_path / "out").code == 0
    _planned.clear()


def test_a_layer_s_file_has_no_name_once_it_is_mapped(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing of it is left by a process that is killed."""
    seen: list[Path] = []
    real = torch.from_file

    def mapped(name: str, **more: Any) -> torch.Tensor:
        assert not any(file.exists() for file in seen)
        seen.append(Path(name))
        return real(name, **more)

    monkeypatch.setattr(torch, "from_file", mapped)
    resolve(ModelRequest(str(tiny_llama), device_map="5-9=disk", weights_format="auto")).load("cpu")
    assert len(seen) > 5


def test_what_fits_stays_on_one_device(tiny_llama: Path) -> None:
    _planned.clear()
    resolved = resolve(ModelRequest(str(tiny_llama), device_map="auto", weights_format="auto"))
    assert resolved.devices("cpu") == "cpu"
    assert resolved.placement("cpu") == {}
    assert resolved.load("cpu").module is not None
    _planned.clear()
