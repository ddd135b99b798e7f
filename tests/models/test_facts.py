"""Facts of the models of the catalogue, by hand, and exit points."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from harness.errors import ConfigError
from harness.models.configuration import read_config
from harness.models.facts import exit_points, parse_exit_points

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


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_parameters_and_layers(name: str, resolved: Any) -> None:
    from transformers import AutoModelForCausalLM

    found = resolved(name)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(read_config(found.spec, "random"))
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


@pytest.mark.model
def test_the_default_model_s_shape_is_its_file_s(smollm2: Any) -> None:
    shape, config = smollm2.resolved.spec.shape, smollm2.module.config
    plain = {key: value for key, value in shape.items() if key != "rope_parameters"}
    assert {key: getattr(config, key) for key in plain} == pytest.approx(plain)  # GGUF rounds to float32
    assert config.rope_parameters["rope_theta"] == shape["rope_parameters"]["rope_theta"]
    assert smollm2.tokenizer.eos_token_ids == frozenset({2})
    assert len(smollm2.tokenizer.wrapped) <= smollm2.info.vocab_size


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [
        (28, (4, 6, 8, 10, 12, 14, 18, 22, 26)),
        (32, (4, 6, 8, 10, 12, 14, 16, 20, 24, 28)),
        (30, (4, 6, 8, 10, 12, 14, 18, 22, 26)),
        (24, (4, 6, 8, 10, 12, 16, 20)),
        (16, (4, 6, 8, 12)),
        (12, (4, 6, 10)),
    ],
)
def test_the_paper_s_rule(num_layers: int, expected: tuple[int, ...]) -> None:
    assert exit_points(num_layers) == expected
    assert parse_exit_points("paper", num_layers) == expected


def test_the_last_layer_is_never_an_exit_point() -> None:
    for num_layers in range(1, 81):
        points = exit_points(num_layers)
        assert all(4 <= point < num_layers for point in points)
        steps = [(a, b - a) for a, b in itertools.pairwise(points)]
        assert all(step == (2 if a + 2 <= num_layers // 2 else 4) for a, step in steps)


def test_a_list_of_layers() -> None:
    wanted = {"7": (7,), "8,2,5": (2, 5, 8), "3,3": (3,), " 1, 27": (1, 27), "all": tuple(range(1, 28))}
    assert {text: parse_exit_points(text, 28) for text in wanted} == wanted
    for text in ("", "4,", "four", "4.5", "4;8", "Paper"):
        with pytest.raises(ConfigError, match=r"cannot be read\. Write 'paper', 'all', or layers such as 4,8,12"):
            parse_exit_points(text, 28)
    for text in ("0", "28", "4,29", "-1,4"):
        with pytest.raises(ConfigError, match=r"layers run from 1 to 27 \(the model has 28"):
            parse_exit_points(text, 28)
