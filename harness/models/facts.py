"""A model's facts from its configuration alone: sizes in bytes, exit points, and what identifies its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.contracts import ModelInfo, ModelRequest
from harness.decoding.families import check_config, position_limit
from harness.models import fingerprint
from harness.models.artefacts import artefact_folders
from harness.models.quiet import quiet
from harness.models.spec import ModelSpec, exit_points, parse_exit_points

__all__ = ["base_facts", "element_size"]


def base_facts(spec: ModelSpec, config: Any, request: ModelRequest) -> ModelInfo:
    """Return the facts of the base weights with the shared exit head.

    Args:
        spec: where the model is.
        config: its transformers configuration.
        request: how it was asked for.

    Raises:
        ConfigError: exit points that do not fit, or a folder of artefacts that does not exist.
        ModelError: the family is not supported, or the weights package is not installed.
    """
    check_config(config)
    limit = position_limit(config)
    num_layers = int(config.num_hidden_layers)
    points = parse_exit_points(request.exit_points, num_layers)
    asked = replace(request, exit_points="paper") if points == exit_points(num_layers) else request
    sizes = _sizes(config, request.dtype)
    base = fingerprint.of_base(spec, config, request)
    return ModelInfo(
        name=spec.name,
        family=config.model_type,
        num_layers=num_layers,
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        exit_points=points,
        max_positions=limit,
        dtype=request.dtype,
        weights="random" if request.weights == "random" else "pretrained",
        fingerprint=base,
        base_fingerprint=base,
        artefacts=tuple(str(folder) for folder in artefact_folders(spec.name, request.artefacts)),
        asked=asked,
        **sizes,
    )


def element_size(dtype: str) -> int:
    """Return the bytes of one element of a torch dtype."""
    import torch

    return torch.tensor([], dtype=getattr(torch, dtype)).element_size()


def _sizes(config: Any, dtype: str) -> dict[str, Any]:
    """Bytes a decoded token reads, from the shapes of a model on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    width = element_size(dtype)
    with torch.device("meta"), quiet():
        module = AutoModelForCausalLM.from_config(config)
    layers = next(m for m in module.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 0)
    layer = sum(parameter.numel() for parameter in layers[0].parameters())
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kv_width = 2 * kv_heads * head_dim
    return {
        "layer_bytes": layer * width,
        "lm_head_bytes": module.get_output_embeddings().weight.numel() * width,
        "kv_projection_bytes": (int(config.hidden_size) * kv_width + int(config.hidden_size)) * width,
        "kv_entry_bytes": kv_width * width,
    }
