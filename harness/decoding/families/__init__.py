"""One adapter per family of decoder-only models: reads a transformers model into a ``Backbone``.

Adding a family is one file with ``read(model) -> Backbone`` and one line here.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from harness.decoding.backbone import Backbone, HeadModules
from harness.errors import ModelError

__all__ = ["FAMILIES", "check_config", "head_modules", "position_limit", "read"]

FAMILIES: dict[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "opt": "opt",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}


def check_config(config: Any) -> None:
    """Refuse a transformers config the engine cannot decode exactly.

    Raises:
        ModelError: unknown family, or a position scaling that changes while decoding.
    """
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"model family '{config.model_type}' is not supported. Supported: {', '.join(sorted(FAMILIES))}. "
            "A family is one file in harness/decoding/families."
        )
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in _STATIC_ROPE:
        raise ModelError(
            f"rotary scaling '{kind}' changes with the sequence length and is not supported. "
            f"Supported: {', '.join(sorted(_STATIC_ROPE))}."
        )


def position_limit(config: Any) -> int:
    """Return the longest sequence that full attention covers, tokens.

    A sliding window counts as the limit: inside it, sliding and full attention are the same.
    """
    limit = int(config.max_position_embeddings)
    layers = getattr(config, "layer_types", None)
    slides = "sliding_attention" in layers if layers else config.model_type == "mistral"
    window = getattr(config, "sliding_window", None)
    return min(limit, int(window)) if slides and window else limit


def head_modules(model: Any) -> HeadModules:
    """Return the modules of a transformers causal LM's shared exit head.

    Raises:
        ModelError: the family is not supported.
    """
    found: HeadModules = _adapter(model.config).head_modules(model)
    return found


def read(model: Any) -> Backbone:
    """Read a transformers causal LM.

    Fused projections become the storage of the modules they came from, so weights are held once and
    the transformers model stays usable (GPT-NeoX gives its query-key-value matrices up).

    Args:
        model: a ``PreTrainedModel`` with an LM head, in the dtype and on the device to decode with.

    Raises:
        ModelError: the family is not supported.
    """
    backbone: Backbone = _adapter(model.config).read(model.eval())
    return backbone


def _adapter(config: Any) -> ModuleType:
    check_config(config)
    return importlib.import_module(f"{__name__}.{FAMILIES[config.model_type]}")
