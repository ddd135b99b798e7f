"""The numbers of a model's ``config.json``, held within bounds before a library builds anything of that size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from harness.errors import ModelError

__all__ = ["REMEDY", "check_configuration", "check_facts"]

_LAYERS, _HEADS, _WIDTH, _WIDE, _WORDS, _POSITIONS = 1000, 1 << 14, 1 << 17, 1 << 20, 1 << 24, 1 << 28

_WHOLE = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), (1, _LAYERS)),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), (1, _HEADS)),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "head_dim"), (1, _WIDTH)),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), (1, _WIDE)),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), (1, _POSITIONS)),
    **dict.fromkeys(("sliding_window", "original_max_position_embeddings"), (0, _POSITIONS)),
    "vocab_size": (1, _WORDS),
    "num_labels": (0, _WIDE),  # transformers spells a name for each
    "max_window_layers": (0, _POSITIONS),
}
"""Field → least and greatest whole number: several times the largest of published models."""

_REAL = {
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), (0.0, 1.0)),
    **dict.fromkeys(("initializer_range", "init_std"), (0.0, 100.0)),
    **dict.fromkeys(("rope_theta", "rotary_emb_base"), (1.0, 1e12)),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), (0.0, 1.0)),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "attention_factor"), (1e-6, 1e6)),
    **dict.fromkeys(("beta_fast", "beta_slow", "mscale", "mscale_all_dim"), (0.0, 1e6)),
}
"""Field → least and greatest number."""

_NESTED = ("rope_parameters", "rope_scaling")
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation")
_NEEDED = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "max_position_embeddings")
REMEDY = "Fetch the file again as it was published with the weights."
"""The remedy for a configuration that cannot be used."""


def check_facts(facts: Mapping[str, Any], file: str) -> None:
    """Refuse a configuration with a number out of bounds, or one that asks for foreign code.

    Args:
        facts: what the JSON says; a field that is absent or ``null`` is for transformers to fill or to refuse.
        file: where it stands, for the message.

    Raises:
        ModelError: names file, field and value.
    """
    for name, value in facts.items():
        if value is None:
            continue
        if name in _NESTED and isinstance(value, dict):
            check_facts({key: inner for key, inner in value.items() if not isinstance(inner, dict)}, file)
            for inner in value.values():  # parameters for each type of layer
                if isinstance(inner, dict):
                    check_facts(inner, file)
        elif name in _WHOLE or name in _REAL:
            _check_number(name, value, file)
        elif name in _IMPLEMENTATIONS and not (isinstance(value, str) and re.fullmatch(r"\w+", value)):
            raise ModelError(f"{file}: {name} = {_short(value)} may be code of the hub, which is never run. {REMEDY}")
        elif name == "per_layer_config":
            raise ModelError(f"{file}: layers of different shapes ({name}) are not supported.")


def check_configuration(config: Any, file: str) -> None:
    """Refuse a transformers configuration whose sizes are missing, out of bounds, or do not fit together.

    Raises:
        ModelError: names file, field and value.
    """
    names = (*_WHOLE, *_REAL, *_NESTED)
    check_facts({name: value for name in names if (value := getattr(config, name, None)) is not None}, file)
    for name in _NEEDED:
        if getattr(config, name, None) is None:
            raise ModelError(f"{file} lacks {name}. {REMEDY}")
    heads, head_dim = config.num_attention_heads, getattr(config, "head_dim", None)
    _check_multiple("hidden_size", config.hidden_size, "num_attention_heads", 1 if head_dim else heads, file)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    _check_multiple("num_attention_heads", heads, "num_key_value_heads", kv_heads, file)
    rope = getattr(config, "rope_parameters", None)
    if rope and "partial_rotary_factor" not in rope:
        _check_multiple("head_dim", head_dim or config.hidden_size // heads, "the two halves of a rotation", 2, file)
    ends = getattr(config, "eos_token_id", None)
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends]) if ends is not None):
        raise ModelError(f"{file}: eos_token_id = {_short(ends)} is no token and no list of them. {REMEDY}")


def _check_number(name: str, value: Any, file: str) -> None:
    whole = name in _WHOLE
    least, most = _WHOLE[name] if whole else _REAL[name]
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not math.isfinite(value) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise ModelError(
            f"{file}: {name} = {_short(value)} is not allowed: it must be {kind} from {least:,} to {most:,}. {REMEDY}"
        )


def _check_multiple(name: str, value: int, of: str, divisor: int, file: str) -> None:
    if value % divisor:
        raise ModelError(f"{file}: {name} = {value} is no multiple of {of} ({divisor}). {REMEDY}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
