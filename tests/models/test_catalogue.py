"""Shapes as facts: the catalogue's configurations make models of the published sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.registry import MODELS

# Published parameter counts (tied embeddings once).
MODEL_SIZES = {
    "smollm2-135m": (30, 134.52e6),
    "smollm2-360m": (32, 361.82e6),
    "smollm2-1.7b": (24, 1711.38e6),
    "opt-125m": (12, 125.24e6),
    "opt-350m": (24, 331.20e6),
    "opt-1.3b": (24, 1315.76e6),
    "opt-2.7b": (32, 2651.60e6),
    "opt-6.7b": (32, 6658.47e6),
    "llama-3.2-1b": (16, 1235.81e6),
    "llama-3.2-3b": (28, 3212.75e6),
}


def test_every_model_of_the_catalogue_is_checked() -> None:
    built_in = {entry.name for entry in MODELS.entries() if entry.target.startswith("harness.models.catalogue:")}
    assert built_in == set(MODEL_SIZES)


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_parameters_and_layers(name: str, resolved: Any) -> None:
    from transformers import AutoModelForCausalLM

    found = resolved(name)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(found.config)
    num_layers, parameters = MODEL_SIZES[name]
    assert found.info.num_layers == num_layers
    assert found.info.weights == "random"
    assert sum(parameter.numel() for parameter in module.parameters()) == pytest.approx(parameters, rel=1e-4)


def test_bytes_of_llama_3_2_3b_by_hand(resolved: Any) -> None:
    info = resolved("llama-3.2-3b", dtype="bfloat16").info
    attention = 3072 * 3072 * 2 + 3072 * 1024 * 2  # query and output; key and value of 8 heads × 128
    assert info.layer_bytes == 2 * (attention + 3 * 3072 * 8192 + 2 * 3072)
    assert info.lm_head_bytes == 2 * 128256 * 3072
    assert info.kv_projection_bytes == 2 * (3072 * 2048 + 3072)
    assert info.kv_entry_bytes == 2 * 2048
    assert info.exit_points == (4, 6, 8, 10, 12, 14, 18, 22, 26)
    assert info.max_positions == 131072


def test_bytes_of_opt_2_7b_by_hand(resolved: Any) -> None:
    info = resolved("opt-2.7b", dtype="float32").info
    width = 2560
    attention, mlp, norms = 4 * (width * width + width), 2 * 4 * width * width + 5 * width, 4 * width
    assert info.layer_bytes == 4 * (attention + mlp + norms)
    assert info.lm_head_bytes == 4 * 50272 * width
    assert info.kv_entry_bytes == 4 * 2 * width
    assert info.exit_points == (4, 6, 8, 10, 12, 14, 16, 20, 24, 28)
    assert (info.family, info.vocab_size, info.hidden_size, info.max_positions) == ("opt", 50272, 2560, 2048)


def test_relative_costs_are_those_of_the_literature_notes(resolved: Any) -> None:
    # ρ, one LM-head evaluation in layers, and κ, the share of a layer that a K,V fill is.
    for name, rho, kappa in (
        ("smollm2-135m", 8.0, 0.062),
        ("llama-3.2-3b", 3.9, 0.062),
        ("opt-2.7b", 1.6, 0.167),
    ):
        info = resolved(name).info
        assert info.lm_head_bytes / info.layer_bytes == pytest.approx(rho, abs=0.05)
        assert info.kv_projection_bytes / info.layer_bytes == pytest.approx(kappa, abs=0.001)


@pytest.mark.model
def test_the_default_model_s_shape_is_its_file_s(smollm2: Any) -> None:
    shape, config = smollm2.resolved.spec.shape, smollm2.module.config
    plain = {key: value for key, value in shape.items() if key != "rope_parameters"}
    assert {key: getattr(config, key) for key in plain} == pytest.approx(plain)  # GGUF rounds to float32
    assert config.rope_parameters["rope_theta"] == shape["rope_parameters"]["rope_theta"]
    assert smollm2.tokenizer.eos_token_ids == frozenset({2})
    assert len(smollm2.tokenizer.wrapped) <= smollm2.info.vocab_size
